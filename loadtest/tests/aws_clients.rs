//! AWS's own clients, unchanged, against the simulation: the judge of its wire formats that is not our own.
//!
//! They are taken from the virtual environment that `PODCRED_AWS_CLIENTS` names (requirements.txt beside this file).
//! Without it the tests are left out, which CI does not allow.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, too")]

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

use aws_credential_types::Credentials;
use loadtest::eks::{Config, PodToken, SimulatedEks};
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::111122223333:role/cart";

/// AWS's clients with a home of their own, so that nobody's profile gets in.
struct Clients {
    venv: PathBuf,
    home: tempfile::TempDir,
}

impl Clients {
    fn found() -> Option<Clients> {
        let Some(venv) = std::env::var_os("PODCRED_AWS_CLIENTS") else {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "PODCRED_AWS_CLIENTS is not set: in CI AWS's clients are not left out");
            leave_out();
            return None;
        };
        // A relative path is meant from where cargo was called; the test runs in the package's folder.
        let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        Some(Clients { venv: workspace.join(venv), home: tempfile::tempdir().unwrap() })
    }

    fn command(&self, program: &str, arguments: &[&str], credentials: &Credentials) -> Command {
        let mut command = Command::new(self.venv.join("bin").join(program));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")))
            .env("HOME", self.home.path())
            .env("AWS_DEFAULT_REGION", "eu-west-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_MAX_ATTEMPTS", "1")
            .env("AWS_ACCESS_KEY_ID", credentials.access_key_id())
            .env("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key());
        if let Some(token) = credentials.session_token() {
            command.env("AWS_SESSION_TOKEN", token);
        }
        command
    }

    async fn aws(&self, credentials: &Credentials, endpoint: &Endpoint, arguments: &[&str]) -> Output {
        let arguments = [arguments, &["--output", "json", "--endpoint-url", &endpoint.url]].concat();
        run(endpoint.trusted(self.command("aws", &arguments, credentials))).await
    }

    async fn aws_ok(&self, credentials: &Credentials, endpoint: &Endpoint, arguments: &[&str]) -> Value {
        let output = self.aws(credentials, endpoint, arguments).await;
        assert!(output.status.success(), "aws {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn aws_error(&self, credentials: &Credentials, endpoint: &Endpoint, arguments: &[&str]) -> String {
        let output = self.aws(credentials, endpoint, arguments).await;
        assert!(!output.status.success(), "aws {arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[expect(
    clippy::explicit_write,
    reason = "the test runner keeps what passing tests print by macros to itself"
)]
fn leave_out() {
    writeln!(std::io::stderr(), "left out: PODCRED_AWS_CLIENTS names no venv with awscli and boto3").unwrap();
}

/// Where a client is pointed to, and what it must trust to get there.
struct Endpoint {
    url: String,
    ca: Option<PathBuf>,
}

impl Endpoint {
    fn trusted(&self, mut command: Command) -> Command {
        if let Some(ca) = &self.ca {
            command.env("AWS_CA_BUNDLE", ca);
        }
        command
    }
}

async fn run(mut command: Command) -> Output {
    // On a thread of its own: the simulation runs in this runtime.
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

/// The simulation over http and https.
async fn simulation(clients: &Clients) -> (SimulatedEks, [Endpoint; 2]) {
    let https_listen = Some("127.0.0.1:0".parse().unwrap());
    let eks = SimulatedEks::start(Config { https_listen, ..Config::default() }).await.unwrap();
    let ca = clients.home.path().join("ca.pem");
    std::fs::write(&ca, eks.ca_pem().unwrap()).unwrap();
    let http = Endpoint { url: eks.url().to_owned(), ca: None };
    let https = Endpoint { url: eks.https_url().unwrap().to_owned(), ca: Some(ca) };
    (eks, [http, https])
}

#[tokio::test]
async fn the_cli_creates_lists_describes_updates_and_deletes_associations() {
    let Some(clients) = Clients::found() else { return };
    let (eks, endpoints) = simulation(&clients).await;
    let admin = eks.admin_credentials();
    for endpoint in &endpoints {
        let eks_command = async |operation: &str, arguments: &[&str]| {
            let arguments = [&["eks", operation, "--cluster-name", "demo"], arguments].concat();
            clients.aws_ok(admin, endpoint, &arguments).await
        };
        let new =
            ["--namespace", "shop", "--service-account", "cart", "--role-arn", ROLE, "--tags", "team=a"];
        let created = eks_command("create-pod-identity-association", &new).await;
        let id = created["association"]["associationId"].as_str().unwrap();
        let listed = eks_command("list-pod-identity-associations", &["--namespace", "shop"]).await;
        assert_eq!(listed["associations"][0]["associationId"], id);
        let other = "arn:aws:iam::111122223333:role/other";
        let change = ["--association-id", id, "--role-arn", other, "--disable-session-tags"];
        eks_command("update-pod-identity-association", &change).await;
        let described = eks_command("describe-pod-identity-association", &["--association-id", id]).await;
        assert_eq!(described["association"]["roleArn"], other);
        assert_eq!(described["association"]["disableSessionTags"], true);
        assert_eq!(described["association"]["tags"], json!({ "team": "a" }));
        eks_command("delete-pod-identity-association", &["--association-id", id]).await;
        let listed = eks_command("list-pod-identity-associations", &[]).await;
        assert_eq!(listed["associations"], json!([]));
    }
}

#[tokio::test]
async fn the_cli_assumes_a_pods_role_and_sts_knows_the_session() {
    let Some(clients) = Clients::found() else { return };
    let (eks, endpoints) = simulation(&clients).await;
    eks.create_association("shop", "cart", ROLE);
    let token = eks.mint(PodToken::new("shop", "cart", "cart-1")).token;
    for endpoint in &endpoints {
        let assume =
            ["eks-auth", "assume-role-for-pod-identity", "--cluster-name", "demo", "--token", &token];
        let answer = clients.aws_ok(eks.node_credentials(), endpoint, &assume).await;
        assert_eq!(answer["subject"], json!({ "namespace": "shop", "serviceAccount": "cart" }));
        let field = |name: &str| answer["credentials"][name].as_str().unwrap().to_owned();
        let session = Some(field("sessionToken"));
        let pod = Credentials::new(field("accessKeyId"), field("secretAccessKey"), session, None, "test");
        let identity = clients.aws_ok(&pod, endpoint, &["sts", "get-caller-identity"]).await;
        assert_eq!(identity["Arn"], answer["assumedRoleUser"]["arn"]);
        assert_eq!(identity["UserId"], answer["assumedRoleUser"]["assumeRoleId"]);
        assert_eq!(identity["Account"], "111122223333");
    }
}

#[tokio::test]
async fn the_cli_shows_the_simulations_errors_by_their_names() {
    let Some(clients) = Clients::found() else { return };
    let (eks, [endpoint, _]) = simulation(&clients).await;
    eks.create_association("shop", "cart", ROLE);
    let expired = eks.mint(PodToken::new("shop", "cart", "cart-1").expires_in_seconds(0)).token;
    let assume = ["eks-auth", "assume-role-for-pod-identity", "--cluster-name", "demo", "--token", &expired];
    let error = clients.aws_error(eks.node_credentials(), &endpoint, &assume).await;
    assert!(error.contains("(ExpiredTokenException)"), "{error}");
    let unknown = Credentials::new("AKIAUNKNOWN", "x", None, None, "test");
    let error = clients.aws_error(&unknown, &endpoint, &assume).await;
    assert!(error.contains("(UnrecognizedClientException)"), "{error}");

    let wrong = Credentials::new(eks.admin_credentials().access_key_id(), "wrong", None, None, "test");
    let list = ["eks", "list-pod-identity-associations", "--cluster-name", "demo"];
    let error = clients.aws_error(&wrong, &endpoint, &list).await;
    assert!(error.contains("(InvalidSignatureException)"), "{error}");
    let error = clients.aws_error(&wrong, &endpoint, &["sts", "get-caller-identity"]).await;
    assert!(error.contains("(SignatureDoesNotMatch)"), "{error}");
    let create = ["eks", "create-pod-identity-association", "--cluster-name", "demo", "--namespace", "shop"];
    let create = [&create[..], &["--service-account", "cart", "--role-arn", ROLE]].concat();
    let error = clients.aws_error(eks.admin_credentials(), &endpoint, &create).await;
    assert!(error.contains("(ResourceInUseException)"), "{error}");
}

#[tokio::test]
async fn boto3_pages_through_associations_and_reads_the_errors_as_its_model_has_them() {
    let Some(clients) = Clients::found() else { return };
    let (eks, endpoints) = simulation(&clients).await;
    for n in 0..7 {
        eks.create_association("shop", &format!("sa-{n}"), ROLE);
    }
    let script = r#"
import boto3, datetime, json, os
eks = boto3.client("eks", endpoint_url=os.environ["ENDPOINT"])
pages = list(eks.get_paginator("list_pod_identity_associations").paginate(
    clusterName="demo", namespace="shop", PaginationConfig={"PageSize": 3}))
found = [a for page in pages for a in page["associations"]]
one = eks.describe_pod_identity_association(clusterName="demo", associationId=found[0]["associationId"])["association"]
try:
    eks.create_pod_identity_association(clusterName="demo", namespace="shop", serviceAccount="x", roleArn=one["roleArn"], policy="{}")
    refused = None
except eks.exceptions.InvalidParameterException as error:
    refused = error.response["Error"]["Message"]
print(json.dumps({
    "pages": len(pages), "accounts": sorted(a["serviceAccount"] for a in found), "refused": refused,
    "dated": isinstance(one["createdAt"], datetime.datetime)}))
"#;
    for endpoint in &endpoints {
        let command = clients.command("python", &["-c", script], eks.admin_credentials());
        let mut command = endpoint.trusted(command);
        command.env("ENDPOINT", &endpoint.url);
        let output = run(command).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&told["pages"], &told["dated"]), (&json!(3), &json!(true)));
        let accounts: Vec<_> = (0..7).map(|n| format!("sa-{n}")).collect();
        assert_eq!(told["accounts"], json!(accounts));
        assert!(told["refused"].as_str().unwrap().contains("disableSessionTags=true"), "{told}");
    }
}

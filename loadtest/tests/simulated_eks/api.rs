use std::collections::BTreeSet;

use loadtest::eks::{Config, SimulatedEks};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Answer, associations, assume, control, get, send};
use crate::{ROLE, with_cart};

async fn started() -> SimulatedEks {
    SimulatedEks::start(Config::default()).await.unwrap()
}

#[tokio::test]
async fn an_association_can_be_created_described_updated_and_deleted() {
    let eks = started().await;
    let new =
        json!({ "namespace": "shop", "serviceAccount": "cart", "roleArn": ROLE, "tags": { "team": "a" } });
    let created = associations(&eks, Method::POST, "", new).await;
    assert_eq!(created.status, 200, "{}", created.body);
    let association = &created.body["association"];
    let id = association["associationId"].as_str().unwrap();
    assert!(association["associationArn"].as_str().unwrap().ends_with(id), "{association}");
    assert_eq!(association["tags"], json!({ "team": "a" }));
    assert!(association["createdAt"].is_number(), "{association}");

    let path = format!("/{id}");
    let change = json!({ "roleArn": "arn:aws:iam::111122223333:role/other", "disableSessionTags": true });
    associations(&eks, Method::POST, &path, change).await;
    let described = associations(&eks, Method::GET, &path, Value::Null).await;
    assert_eq!(described.body["association"]["roleArn"], "arn:aws:iam::111122223333:role/other");
    assert_eq!(described.body["association"]["disableSessionTags"], true);
    let deleted = associations(&eks, Method::DELETE, &path, Value::Null).await;
    assert_eq!(deleted.body["association"]["associationId"], id);
    let gone = associations(&eks, Method::GET, &path, Value::Null).await;
    assert_eq!(gone.outcome(), (404, "ResourceNotFoundException"));
}

#[tokio::test]
async fn the_associations_api_refuses_with_the_documented_errors() {
    let eks = with_cart().await;
    let new = |account: &str| json!({ "namespace": "shop", "serviceAccount": account, "roleArn": ROLE });
    let twice = associations(&eks, Method::POST, "", new("cart")).await;
    assert_eq!(twice.outcome(), (409, "ResourceInUseException"));
    let mut with_policy = new("pay");
    with_policy["policy"] = json!("{}");
    let answer = associations(&eks, Method::POST, "", with_policy).await;
    assert_eq!(answer.outcome(), (400, "InvalidParameterException"));
    assert!(answer.body["message"].as_str().unwrap().contains("disableSessionTags=true"), "{}", answer.body);
    let answer = associations(&eks, Method::POST, "", json!({ "namespace": 1 })).await;
    assert_eq!(answer.outcome(), (400, "InvalidParameterException"));
    eks.settings(|settings| settings.association_limit = 1);
    let answer = associations(&eks, Method::POST, "", new("pay")).await;
    assert_eq!(answer.outcome(), (400, "ResourceLimitExceededException"));
    let path = "/clusters/other/pod-identity-associations";
    let answer = send(&eks, eks.admin_credentials(), "eks", Method::GET, path, String::new()).await.unwrap();
    assert_eq!(Answer::of(answer).await.outcome(), (404, "ResourceNotFoundException"));
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let eks = started().await;
    for n in 0..5 {
        eks.create_association("shop", &format!("sa-{n}"), ROLE);
    }
    eks.create_association("other", "sa-0", ROLE);
    let (mut seen, mut pages, mut token) = (BTreeSet::new(), 0, String::new());
    loop {
        let query = format!("?namespace=shop&maxResults=2{token}");
        let page = associations(&eks, Method::GET, &query, Value::Null).await.body;
        pages += 1;
        for association in page["associations"].as_array().unwrap() {
            assert!(seen.insert(association["serviceAccount"].as_str().unwrap().to_owned()));
            assert!(association.get("roleArn").is_none(), "a summary has no role");
        }
        match page["nextToken"].as_str() {
            Some(next) => token = format!("&nextToken={next}"),
            None => break,
        }
    }
    assert_eq!((seen.len(), pages), (5, 3));
    let one = associations(&eks, Method::GET, "?namespace=other&serviceAccount=sa-0", Value::Null).await;
    assert_eq!(one.body["associations"].as_array().unwrap().len(), 1);
    for bad in ["?maxResults=0", "?maxResults=101", "?maxResults=x", "?nextToken=x"] {
        let answer = associations(&eks, Method::GET, bad, Value::Null).await;
        assert_eq!(answer.outcome(), (400, "InvalidParameterException"), "{bad}");
    }
}

#[tokio::test]
async fn only_the_administrator_may_use_the_associations_api() {
    let eks = started().await;
    let path = "/clusters/demo/pod-identity-associations";
    let answer = send(&eks, eks.node_credentials(), "eks", Method::GET, path, String::new()).await.unwrap();
    assert_eq!(Answer::of(answer).await.outcome(), (403, "AccessDeniedException"));
    let unsigned = Answer::of(get(format!("{}{path}", eks.url())).await).await;
    assert_eq!(unsigned.outcome(), (403, "MissingAuthenticationTokenException"));
}

#[tokio::test]
async fn the_control_api_does_what_the_handle_does() {
    let eks = with_cart().await;
    let pod = json!({ "namespace": "shop", "serviceAccount": "cart", "podName": "cart-1", "nodeName": "n" });
    let minted = control(&eks, Method::POST, "/tokens", pod).await.body;
    let token = minted["token"].as_str().unwrap();
    let granted = assume(&eks, token).await;
    let key = granted.credentials().access_key_id().to_owned();
    let session = control(&eks, Method::GET, &format!("/sessions/{key}"), Value::Null).await.body;
    assert_eq!(
        (&session["roleArn"], &session["tags"]["kubernetes-pod-name"]),
        (&json!(ROLE), &json!("cart-1"))
    );

    let calls = control(&eks, Method::GET, "/calls", Value::Null).await.body;
    assert_eq!((&calls[0]["role"], &calls[0]["accessKeyId"]), (&json!("shop/cart"), &json!(key)));
    let counts = control(&eks, Method::GET, "/counts", Value::Null).await.body;
    assert_eq!(
        counts,
        json!({ "total": 1, "byRole": { "shop/cart": 1 }, "byResult": { "OK": 1 }, "issuerKeyFetches": 0, "inFlight": 0 })
    );
    control(&eks, Method::POST, "/calls/reset", Value::Null).await;
    assert_eq!(eks.counts().total, 0);

    let web = json!({ "namespace": "web", "serviceAccount": "app", "roleArn": ROLE });
    let made = control(&eks, Method::POST, "/associations", web.clone()).await;
    assert_eq!((made.status, &made.body["serviceAccount"]), (200, &json!("app")));
    assert_eq!(control(&eks, Method::POST, "/associations", web).await.status, 400, "there is one already");

    let policy = json!({ "Statement": [] });
    let answer = control(&eks, Method::PUT, "/roles", json!({ "arn": ROLE, "trustPolicy": policy })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(assume(&eks, token).await.outcome(), (400, "AccessDeniedException"));
    control(&eks, Method::PUT, "/roles", json!({ "arn": ROLE })).await;
    assert_eq!(assume(&eks, token).await.status, 200);

    let uid = minted["podUid"].as_str().unwrap();
    control(&eks, Method::POST, &format!("/pods/{uid}/delete"), Value::Null).await;
    assert_eq!(assume(&eks, token).await.outcome(), (400, "InvalidTokenException"));
    let account = json!({ "namespace": "shop", "serviceAccount": "cart" });
    let recreated = control(&eks, Method::POST, "/service-accounts/recreate", account).await.body;
    assert_ne!(recreated["serviceAccountUid"], minted["serviceAccountUid"]);

    let rotated = control(&eks, Method::POST, "/keys/rotate", json!({ "publish": false })).await;
    assert!(rotated.body["kid"].is_string(), "{}", rotated.body);
    let node = json!({ "accessKeyId": "AKIANEW", "secretAccessKey": "s" });
    assert_eq!(control(&eks, Method::PUT, "/node-credentials", node).await.status, 200);
    assert_eq!(assume(&eks, token).await.outcome(), (403, "UnrecognizedClientException"));
}

#[tokio::test]
async fn settings_are_patched_one_by_one_and_checked() {
    let eks = started().await;
    let patched = control(&eks, Method::PATCH, "/settings", json!({ "latencyMs": 5 })).await;
    assert_eq!((patched.status, &patched.body["latencyMs"]), (200, &json!(5)));
    for bad in [json!({ "errorRate": 2 }), json!({ "latncyMs": 1 }), json!({ "outage": "fire" })] {
        let answer = control(&eks, Method::PATCH, "/settings", bad).await;
        assert_eq!(answer.status, 400);
        assert!(answer.body["error"].is_string(), "{}", answer.body);
    }
    let settings = control(&eks, Method::GET, "/settings", Value::Null).await.body;
    assert_eq!(settings, patched.body, "a refused patch changes nothing");
}

#[tokio::test]
async fn the_control_api_says_what_is_wrong() {
    let eks = started().await;
    let cases = [
        (Method::POST, "/tokens", json!({ "namespace": "shop" }), 400, "serviceAccount"),
        (Method::POST, "/tokens", json!({ "pod": 1 }), 400, "unknown field `pod`"),
        (Method::PUT, "/roles", json!({ "arn": "x" }), 400, "must be a role's"),
        (Method::PUT, "/roles", json!({ "arn": ROLE, "trustPolicy": 1 }), 400, "trust policy"),
        (Method::GET, "/sessions/ASIAX", Value::Null, 404, "ASIAX"),
        (Method::GET, "/nothing", Value::Null, 404, "/control/nothing"),
    ];
    for (method, path, body, status, part) in cases {
        let answer = control(&eks, method, path, body).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body["error"].as_str().unwrap().contains(part), "{}", answer.body);
    }
}

use super::*;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::from_args(args.iter().map(Into::into).collect())
}

/// `podcred server -c c …`
fn server(args: &[&str]) -> Result<ServerConfig, String> {
    match parse(&[&["podcred", "server", "-c", "c"], args].concat()) {
        Ok(Cli { command: Command::Server(config), .. }) => Ok(*config),
        Ok(other) => panic!("not a server: {other:?}"),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn what_the_official_chart_passes_starts_podcred_unchanged() {
    let cli = parse(&[
        "/go-runner",
        "/eks-pod-identity-agent",
        "server",
        "--port",
        "80",
        "--cluster-name",
        "my-cluster",
        "--probe-port",
        "2703",
        "-v",
        "trace",
        "--rotate-credentials",
        "true",
        "-b",
        "169.254.170.23",
        "-b",
        "[fd00:ec2::23]",
        "--max-credential-retention-before-renewal=1h30m",
    ])
    .unwrap();
    assert_eq!(cli.log.verbosity, Verbosity::Trace);
    let Command::Server(config) = cli.command else { panic!("{cli:?}") };
    assert_eq!(config.cluster_name, "my-cluster");
    assert_eq!((config.port, config.probe_port, config.metrics_port), (80, 2703, 2705));
    assert!(config.rotate_credentials);
    assert_eq!(config.bind_hosts, ["169.254.170.23", "fd00:ec2::23"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(config.max_credential_retention, Duration::from_secs(5400));
}

#[test]
fn defaults_are_the_official_agents() {
    let config = server(&[]).unwrap();
    assert_eq!((config.port, config.probe_port, config.metrics_port), (80, 2703, 2705));
    assert_eq!(config.metrics_address, IpAddr::from(Ipv4Addr::UNSPECIFIED));
    assert_eq!(config.bind_hosts, ["169.254.170.23", "fd00:ec2::23"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(config.max_credential_retention, Duration::from_secs(3 * 3600));
    assert_eq!((config.max_cache_size, config.max_service_qps), (2000, 3));
    assert!(!config.rotate_credentials && config.endpoint.is_none() && config.caching());
}

#[test]
fn podcreds_own_defaults_are_those_of_the_reference() {
    let cli = parse(&["podcred", "server", "-c", "c"]).unwrap();
    assert_eq!((cli.log.verbosity, cli.log.log_format), (Verbosity::Info, LogFormat::Text));
    let config = server(&[]).unwrap();
    assert_eq!((config.issuer, config.jwks_url, config.sharing), (None, None, Sharing::default()));
    assert_eq!(config.eks_auth_wait, Duration::from_millis(1800));
    assert_eq!(config.revalidate_after, Duration::from_secs(60));
    assert_eq!(config.shutdown_grace, Duration::from_secs(10));
    assert_eq!((config.workers, config.max_connections, config.verification.mode), (2, 4096, Verify::Audit));
    assert_eq!(config.control_socket, Path::new("/run/podcred/control.sock"));
}

#[test]
fn every_spelling_of_a_flag_that_pflag_takes_is_taken() {
    for args in [["-c", "name"].as_slice(), &["-cname"], &["-c=name"], &["--cluster-name=name"]] {
        let cli = parse(&[&["podcred", "server"], args].concat()).unwrap();
        let Command::Server(config) = cli.command else { panic!("{cli:?}") };
        assert_eq!(config.cluster_name, "name", "{args:?}");
    }
    for args in
        [["-b", "127.0.0.1,[::1]"].as_slice(), &["-b127.0.0.1", "-b=::1"], &["--bind-hosts=127.0.0.1,::1"]]
    {
        let hosts = server(args).unwrap().bind_hosts;
        assert_eq!(hosts, ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()), "{args:?}");
    }
}

#[test]
fn rotate_credentials_is_a_switch_and_a_flag_with_a_value() {
    for (args, expected) in [
        (["--rotate-credentials"].as_slice(), true),
        (&["--rotate-credentials", "--port", "81"], true),
        (&["--rotate-credentials", "true"], true),
        (&["--rotate-credentials=T"], true),
        (&["--rotate-credentials=false"], false),
        (&["--rotate-credentials", "false"], false),
        (&["--rotate-credentials=0"], false),
    ] {
        assert_eq!(server(args).unwrap().rotate_credentials, expected, "{args:?}");
    }
}

#[test]
fn the_last_of_two_equal_flags_wins() {
    assert_eq!(server(&["--port", "81", "-p", "82"]).unwrap().port, 82);
    assert_eq!(
        parse(&["podcred", "-v", "debug", "-v", "warn", "version"]).unwrap().log.verbosity,
        Verbosity::Warn
    );
    let cli = parse(&["podcred", "-v", "debug", "server", "-c", "c", "-v", "warn", "-v", "error"]).unwrap();
    assert_eq!(cli.log.verbosity, Verbosity::Error);
}

#[test]
fn log_levels_have_their_logrus_names() {
    for (name, level) in [
        ("panic", Verbosity::Error),
        ("fatal", Verbosity::Error),
        ("error", Verbosity::Error),
        ("warn", Verbosity::Warn),
        ("WARNING", Verbosity::Warn),
        ("info", Verbosity::Info),
        ("debug", Verbosity::Debug),
        ("trace", Verbosity::Trace),
    ] {
        for args in [["podcred", "-v", name, "version"], ["podcred", "version", "--verbosity", name]] {
            assert_eq!(parse(&args).unwrap().log.verbosity, level, "{args:?}");
        }
    }
}

#[test]
fn either_zero_of_the_official_agent_turns_caching_off() {
    assert!(!server(&["--max-cache-size", "0"]).unwrap().caching());
    assert!(!server(&["--max-credential-retention-before-renewal", "0"]).unwrap().caching());
}

#[test]
fn a_bad_value_is_refused_with_flag_value_and_what_is_allowed() {
    for (args, parts) in [
        (["--cluster-name", "-x"].as_slice(), ["--cluster-name", "\"-x\"", "1 to 100 letters"]),
        (&["--cluster-name=_x"], ["--cluster-name", "\"_x\"", "1 to 100 letters"]),
        (&["--cluster-name="], ["--cluster-name", "\"\"", "1 to 100 letters"]),
        (&["--cluster-name=a/b"], ["--cluster-name", "\"a/b\"", "1 to 100 letters"]),
        (&["--port", "65536"], ["--port", "\"65536\"", "1 to 65535"]),
        (&["--probe-port", "http"], ["--probe-port", "\"http\"", "1 to 65535"]),
        (&["--metrics-port", "-1"], ["--metrics-port", "\"-1\"", "1 to 65535"]),
        (&["--metrics-address", "localhost"], ["--metrics-address", "\"localhost\"", "not a host name"]),
        (&["-b", "169.254.170.23,node"], ["--bind-hosts", "\"node\"", "not a host name"]),
        (&["-b", "[fd00:ec2::23"], ["--bind-hosts", "\"[fd00:ec2::23\"", "IPv6"]),
        (
            &["--max-credential-retention-before-renewal", "3"],
            ["--max-credential-retention-before-renewal", "\"3\"", "1h30m"],
        ),
        (&["--max-cache-size=-1"], ["--max-cache-size", "\"-1\"", "from 0 to"]),
        (&["--max-service-qps", "0"], ["--max-service-qps", "\"0\"", "from 1 to"]),
        (&["--rotate-credentials=maybe"], ["--rotate-credentials", "\"maybe\"", "true or false"]),
        (&["--endpoint", "eks-auth"], ["--endpoint", "\"eks-auth\"", "https://HOST"]),
        (&["--endpoint", "ftp://x"], ["--endpoint", "ftp", "use https"]),
        (&["--endpoint", "http://eks-auth.internal/"], ["--endpoint", "eks-auth.internal", "use https"]),
        (&["--endpoint", "http://10.0.0.1:8099"], ["--endpoint", "10.0.0.1", "use https"]),
        (&["--issuer", "http://10.0.0.1/"], ["--issuer", "\"http://10.0.0.1/\"", "use https"]),
        (&["--issuer", "https://x/?a=b"], ["--issuer", "\"https://x/?a=b\"", "query"]),
        (&["--jwks-url", "http://localhost.evil/"], ["--jwks-url", "localhost.evil", "use https"]),
        (&["--jwks-url", "https://x/#f"], ["--jwks-url", "\"https://x/#f\"", "fragment"]),
        (&["--token-file="], ["--token-file", "\"\"", "path"]),
        (&["--sharing", "node"], ["--sharing", "\"node\"", "role, pod"]),
        (&["--pod-scoped", "default"], ["--pod-scoped", "\"default\"", "team-*/runner"]),
        (&["--revalidate-after", "10ms"], ["--revalidate-after", "\"10ms\"", "1s"]),
        (&["--eks-auth-wait", "0"], ["--eks-auth-wait", "\"0\"", "1ms to 10s"]),
        (&["--eks-auth-wait", "10.1s"], ["--eks-auth-wait", "\"10.1s\"", "1ms to 10s"]),
        (&["--workers", "0"], ["--workers", "\"0\"", "from 1 to 256"]),
        (&["--verify", "on"], ["--verify", "\"on\"", "off, audit, enforce"]),
        (&["--node-name", "a b"], ["--node-name", "\"a b\"", "1 to 253 letters"]),
        (&["--startup-taint", "a/b:NoSchedule"], ["--startup-taint", "\"a/b:NoSchedule\"", "key alone"]),
        (&["--startup-taint", "/b"], ["--startup-taint", "\"/b\"", "key of a taint"]),
        (&["--startup-taint", "a/b/c"], ["--startup-taint", "\"a/b/c\"", "key of a taint"]),
        (&["--startup-taint", "podcred/new"], ["--startup-taint", "requires", "--node-name"]),
        (&["--instance-id="], ["--instance-id", "\"\"", "1 to 253 letters"]),
        (&["--zone", "é"], ["--zone", "\"é\"", "1 to 253 letters"]),
        (&["--control-socket", "run/x"], ["--control-socket", "\"run/x\"", "absolute path"]),
        (&["--max-connections", "0"], ["--max-connections", "\"0\"", "from 1 to"]),
        (&["--shutdown-grace", "1h"], ["--shutdown-grace", "\"1h\"", "terminationGracePeriodSeconds"]),
        (&["--log-format", "xml"], ["--log-format", "\"xml\"", "text, json"]),
        (&["-v", "loud"], ["--verbosity", "\"loud\"", "error, warn, info, debug, trace"]),
    ] {
        let problem = server(args).expect_err(&format!("{args:?}"));
        for part in parts {
            assert!(problem.contains(part), "{args:?} lacks {part:?}: {problem}");
        }
    }
}

#[test]
fn a_password_in_a_url_is_refused_without_being_repeated() {
    let problem = server(&["--endpoint", "https://user:hunter2@host/"]).expect_err("it has a password");
    assert!(problem.contains("user name or password") && !problem.contains("hunter2"), "{problem}");
}

#[test]
fn keys_may_come_by_plain_http_from_this_machine_only() {
    for url in
        ["http://127.0.0.1:9/x", "http://[::1]:9/x", "http://localhost/x", "https://10.0.0.1/openid/v1/jwks"]
    {
        assert_eq!(server(&["--jwks-url", url]).unwrap().jwks_url.as_deref(), Some(url));
    }
}

#[test]
fn the_issuer_keeps_its_spelling_to_the_byte() {
    let issuer = "https://oidc.eks.us-west-2.amazonaws.com/id/ABC";
    assert_eq!(server(&["--issuer", issuer]).unwrap().issuer.as_deref(), Some(issuer));
    assert_eq!(server(&["--issuer", "https://host"]).unwrap().issuer.as_deref(), Some("https://host"));
}

#[test]
fn listeners_that_would_take_each_others_place_are_refused() {
    for args in [
        ["--port", "2705"].as_slice(),
        &["--probe-port", "2705"],
        &["-b", "127.0.0.1", "--port", "2703"],
        &["-b", "127.0.0.1", "-b", "127.0.0.1"],
        &["-b", "127.0.0.1", "-b", "0.0.0.0"],
    ] {
        let problem = server(args).expect_err(&format!("{args:?}"));
        assert!(problem.contains("different ports") || problem.contains("--bind-hosts"), "{problem}");
    }
    for args in [
        ["--port", "2703"].as_slice(),
        &["--port", "0", "--probe-port", "0", "--metrics-port", "0"],
        &["--port", "2705", "--metrics-address", "10.0.0.1"],
    ] {
        server(args).expect("no two of them meet");
    }
}

#[test]
fn go_runner_is_dropped_only_where_it_launches_something() {
    let normalised = |args: &[&str]| -> Vec<String> {
        let args = normalise_args(args.iter().map(Into::into).collect());
        args.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    };
    assert_eq!(
        normalised(&["/go-runner", "/eks-pod-identity-agent", "server"]),
        ["/eks-pod-identity-agent", "server"]
    );
    assert_eq!(normalised(&["go-runner"]), ["go-runner"]);
    assert_eq!(normalised(&["/podcred", "/go-runner"]), ["/podcred", "/go-runner"]);
    assert!(normalised(&[]).is_empty());
}

#[test]
fn a_taints_key_is_one_that_kubernetes_takes() {
    for key in ["new", "podcred/agent-not-ready", "node.example.com/a_b.C"] {
        let config = server(&["--node-name", "n", "--startup-taint", key]).unwrap();
        assert_eq!(config.startup_taint.as_deref(), Some(key));
    }
}

#[test]
fn initialize_and_flush_take_their_flags() {
    let cli = parse(&["/go-runner", "/eks-pod-identity-agent", "initialize"]).unwrap();
    let Command::Initialize(config) = cli.command else { panic!("{cli:?}") };
    assert_eq!(config, InitializeConfig { ipv6: Ipv6::Auto, remove: false, pin: None, stay: false });

    let cli = parse(&["podcred", "flush", "prod/db"]).unwrap();
    let Command::Flush(config) = cli.command else { panic!("{cli:?}") };
    assert_eq!(config.service_account, Some(ServiceAccount { namespace: "prod".into(), name: "db".into() }));

    let problem = parse(&["podcred", "flush", "prod"]).expect_err("it has no account").to_string();
    assert!(problem.contains("\"prod\" is not NAMESPACE/SERVICEACCOUNT"), "{problem}");
}

#[test]
fn every_flag_has_help_and_the_environment_variable_of_its_name() {
    let mut cli = Cli::command();
    cli.build();
    cli.clone().debug_assert();
    let mut seen = 0;
    for command in cli.get_subcommands().filter(|c| c.get_name() != "help") {
        for arg in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version")) {
            let id = arg.get_id();
            assert!(arg.get_help().is_some(), "{id} of {} has no help", command.get_name());
            // A variable that turns a command into its opposite would be a trap.
            let Some(long) = arg.get_long().filter(|long| !["remove", "stay"].contains(long)) else {
                continue;
            };
            let expected = format!("PODCRED_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|e| e.to_str()), Some(expected.as_str()), "{id}");
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} flags were looked at");
}

#[test]
fn the_flag_table_lists_every_flag_of_the_server() {
    let table = flag_table();
    for row in [
        "| `--cluster-name NAME`, `-c` | `PODCRED_CLUSTER_NAME` |  |",
        "| `--verbosity LEVEL`, `-v` | `PODCRED_VERBOSITY` | `info` |",
        "| `--bind-hosts IP`, `-b` | `PODCRED_BIND_HOSTS` | `169.254.170.23,[fd00:ec2::23]` |",
        "`off`, `audit`, `enforce` |",
    ] {
        assert!(table.contains(row), "no {row} in\n{table}");
    }
}

use super::*;

const ROLE: &str = "arn:aws:iam::111122223333:role/shop/cart";

fn cluster() -> Cluster {
    Cluster { name: "demo".into(), region: "eu-west-1".into(), account_id: "111122223333".into() }
}

fn new(namespace: &str, account: &str) -> NewAssociation {
    NewAssociation {
        namespace: namespace.into(),
        service_account: account.into(),
        role_arn: ROLE.into(),
        ..NewAssociation::default()
    }
}

fn now() -> Moment {
    Moment { wall: clock::wall(), mono: clock::mono(), delay: Duration::ZERO }
}

fn create(store: &mut Associations, new: NewAssociation) -> Result<Association, ApiError> {
    store.create(&cluster(), new, 5000, now())
}

fn code(result: Result<Association, ApiError>) -> &'static str {
    result.err().map_or("OK", |error| error.code)
}

#[test]
fn one_service_account_has_one_association() {
    let mut store = Associations::default();
    let first = create(&mut store, new("shop", "cart")).unwrap();
    assert_eq!(code(create(&mut store, new("shop", "cart"))), "ResourceInUseException");
    assert_eq!(code(create(&mut store, new("shop", "pay"))), "OK");
    store.delete(&first.association_id, now()).unwrap();
    assert_eq!(code(create(&mut store, new("shop", "cart"))), "OK");
}

#[test]
fn a_repeated_request_token_gives_the_same_association_and_no_second_use() {
    let mut store = Associations::default();
    let request = NewAssociation { client_request_token: Some("t".into()), ..new("shop", "cart") };
    let first = create(&mut store, request.clone()).unwrap();
    assert_eq!(create(&mut store, request).unwrap(), first);
    let other = NewAssociation { client_request_token: Some("t".into()), ..new("shop", "pay") };
    assert_eq!(code(create(&mut store, other)), "InvalidRequestException");
}

#[test]
fn a_policy_requires_session_tags_to_be_off() {
    let mut store = Associations::default();
    let policy = Some("{}".to_owned());
    let with_tags = NewAssociation { policy: policy.clone(), ..new("shop", "cart") };
    let error = create(&mut store, with_tags.clone()).unwrap_err();
    assert_eq!(error.code, "InvalidParameterException");
    assert!(error.message.contains("policy requires disableSessionTags=true"), "{error}");
    let association =
        create(&mut store, NewAssociation { disable_session_tags: Some(true), ..with_tags }).unwrap();
    let on_again = AssociationChange { disable_session_tags: Some(false), ..AssociationChange::default() };
    let error = store.update(&association.association_id, on_again, now()).unwrap_err();
    assert!(error.message.contains("policy requires"), "{error}");
    assert_eq!(
        store.describe(&association.association_id).unwrap().policy,
        policy,
        "a refused update changes nothing"
    );
}

#[test]
fn bad_input_is_named() {
    let mut store = Associations::default();
    let bad = [
        ("namespace", new("Shop", "cart")),
        ("namespace", new("", "cart")),
        ("serviceAccount", new("shop", "cart_1")),
        ("roleArn", NewAssociation { role_arn: "cart".into(), ..new("shop", "cart") }),
        ("targetRoleArn", NewAssociation { target_role_arn: Some(String::new()), ..new("shop", "cart") }),
        ("tags", NewAssociation { tags: Some(BTreeMap::new()), ..new("shop", "cart") }),
        (
            "policy",
            NewAssociation {
                policy: Some("x".into()),
                disable_session_tags: Some(true),
                ..new("shop", "cart")
            },
        ),
    ];
    for (field, request) in bad {
        let error = create(&mut store, request).unwrap_err();
        assert_eq!(error.code, "InvalidParameterException");
        assert!(error.message.contains(field), "{field}: {error}");
    }
    assert_eq!(code(create(&mut store, new("shop", "cart.v1-2"))), "OK");
}

#[test]
fn the_limit_holds() {
    let mut store = Associations::default();
    create(&mut store, new("shop", "cart")).unwrap();
    let second = store.create(&cluster(), new("shop", "pay"), 1, now());
    assert_eq!(code(second), "ResourceLimitExceededException");
}

#[test]
fn pages_cover_all_associations_once_even_when_one_goes_meanwhile() {
    let mut store = Associations::default();
    let ids: Vec<_> =
        (0..5).map(|n| create(&mut store, new("shop", &format!("sa-{n}"))).unwrap().association_id).collect();
    create(&mut store, new("other", "sa-0")).unwrap();
    let (page, next) = store.list(Some("shop"), None, None, 2);
    assert_eq!(page.len(), 2);
    store.delete(&ids[1], now()).unwrap();
    let (page, next) = store.list(Some("shop"), None, next, 2);
    assert_eq!(page.iter().map(|a| &a.association_id).collect::<Vec<_>>(), [&ids[2], &ids[3]]);
    let (page, next) = store.list(Some("shop"), None, next, 2);
    assert_eq!((page.len(), next), (1, None), "the other namespace's is not a reason to go on");
    assert_eq!(store.list(Some("other"), Some("sa-0"), None, 100).0.len(), 1);
}

#[test]
fn a_change_reaches_eks_auth_after_the_delay_and_in_order() {
    let mut store = Associations::default();
    let slow = Moment { delay: Duration::from_secs(10), ..now() };
    let id = store.create(&cluster(), new("shop", "cart"), 10, slow).unwrap().association_id;
    let seen = |store: &Associations, after: u64| {
        let at = slow.mono + Duration::from_secs(after);
        store.seen_by_eks_auth("shop", "cart", at).map(|a| a.role_arn.clone())
    };
    assert_eq!((seen(&store, 9), seen(&store, 10)), (None, Some(ROLE.to_owned())));

    let other = "arn:aws:iam::111122223333:role/other".to_owned();
    let change = AssociationChange { role_arn: Some(other.clone()), ..AssociationChange::default() };
    let later = Moment { mono: slow.mono + Duration::from_secs(20), ..slow };
    store.update(&id, change, later).unwrap();
    assert_eq!((seen(&store, 29), seen(&store, 30)), (Some(ROLE.to_owned()), Some(other)));

    let fast = Moment { mono: slow.mono + Duration::from_secs(21), delay: Duration::ZERO, ..slow };
    store.delete(&id, fast).unwrap();
    assert_eq!(seen(&store, 29), Some(ROLE.to_owned()), "a deletion does not overtake the update before it");
    assert_eq!(seen(&store, 31), None);
}

#[test]
fn a_target_role_brings_an_external_id_that_stays() {
    let mut store = Associations::default();
    let plain = create(&mut store, new("shop", "cart")).unwrap();
    assert_eq!(plain.external_id, None);
    let change = AssociationChange { target_role_arn: Some(ROLE.into()), ..AssociationChange::default() };
    let one = store.update(&plain.association_id, change.clone(), now()).unwrap();
    let two = store.update(&plain.association_id, change, now()).unwrap();
    assert!(one.external_id.is_some());
    assert_eq!(one.external_id, two.external_id);
}

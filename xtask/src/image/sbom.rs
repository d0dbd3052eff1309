//! What the binary is made of, for scanners: CycloneDX, one component for each crate.
//!
//! Made of what cargo resolves for this processor without what only builds and tests need; and of nothing else, so that it is
//! the same on each machine.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, NodeDep, Package, PackageId};
use serde_json::{Value, json};

use super::binary::Built;
use crate::build::root;

pub(super) fn of(built: &Built) -> Result<String> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--locked".to_owned(), "--filter-platform".to_owned(), built.triple.clone()])
        .exec()
        .context("cargo metadata")?;
    let list = components(&metadata)?;
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

fn components(metadata: &Metadata) -> Result<Value> {
    let nodes = &metadata.resolve.as_ref().context("cargo resolves nothing")?.nodes;
    let depends: HashMap<&PackageId, Vec<&PackageId>> = nodes
        .iter()
        .map(|node| (&node.id, node.deps.iter().filter(|dep| is_linked(dep)).map(|dep| &dep.pkg).collect()))
        .collect();
    let packages: HashMap<&PackageId, &Package> =
        metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let podcred = metadata.packages.iter().find(|package| package.name.as_str() == "podcred");
    let podcred = podcred.context("the workspace has no podcred")?;

    let mut reached = BTreeSet::new();
    let mut next = vec![&podcred.id];
    while let Some(id) = next.pop() {
        if reached.insert(id) {
            next.extend(depends.get(id).into_iter().flatten().copied());
        }
    }
    let reference = |id: &PackageId| packages.get(id).map(|package| purl(package));
    let mut crates: Vec<&Package> = reached.iter().filter_map(|id| packages.get(*id).copied()).collect();
    crates.sort_by_key(|package| purl(package));
    let dependencies: Vec<Value> = crates
        .iter()
        .map(|package| {
            let on: BTreeSet<String> =
                depends.get(&package.id).into_iter().flatten().filter_map(|id| reference(id)).collect();
            json!({ "ref": purl(package), "dependsOn": on })
        })
        .collect();
    let others = crates.iter().filter(|package| package.id != podcred.id);
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": component(podcred, "application") },
        "components": others.map(|package| component(package, "library")).collect::<Vec<_>>(),
        "dependencies": dependencies,
    }))
}

/// Not what only runs while it is compiled or tested.
fn is_linked(dependency: &NodeDep) -> bool {
    dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
}

fn component(package: &Package, kind: &str) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": purl(package),
        "name": package.name.as_str(),
        "version": package.version.to_string(),
        "purl": purl(package),
    });
    if let Some(license) = &package.license {
        // Some crates still write MIT/Apache-2.0, which no longer is an expression.
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    component
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

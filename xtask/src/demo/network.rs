//! The demo's network: with root a node and its pods in namespaces of their own, otherwise this machine's loopback.
//!
//! ```text
//! pod namespace            node namespace
//! eth0 10.244.1.N ──veth── pods0 (bridge) 10.244.0.1
//! default route via the    pod-id-link0   169.254.170.23, fd00:ec2::23   podcred
//! node                     lo             127.0.0.1                      simulated EKS
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::agent::{Ports, free_ports};
use crate::namespace::{Namespaces, batch};
use crate::place::Place;
use crate::process::{is_root, quietly};

const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const STS_PORT: u16 = 8080;

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) node: Place,
    pub(crate) pods: Vec<Place>,
    pub(crate) ports: Ports,
    pub(crate) ipv6: bool,
    namespaces: Option<Namespaces>,
}

impl Network {
    pub(crate) async fn prepare(agent: &Path, pods: usize) -> Result<Network> {
        if !is_root() {
            let [credentials, probe, metrics] = free_ports()?;
            let ports = Ports { hosts: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], credentials, probe, metrics };
            let (node, pods) = (Place::Host, vec![Place::Host; pods]);
            return Ok(Network { node, pods, ports, ipv6: false, namespaces: None });
        }
        let labels: Vec<String> =
            std::iter::once("node".to_owned()).chain((1..=pods).map(|n| format!("pod{n}"))).collect();
        let namespaces = Namespaces::add(&labels)?;
        let [node, pod_names @ ..] = namespaces.names() else { bail!("no namespace was made") };
        batch(
            Some(node),
            &format!(
                "link set lo up\nlink add pods0 type bridge\naddress add {BRIDGE}/16 dev pods0\nlink set pods0 up\n"
            ),
        )?;
        // Without `nodad` an address is of no use for its first second.
        let ipv6 = batch(Some(node), "address add fd00:10:244::1/64 dev pods0 nodad\n").is_ok();
        connect(node, pod_names, ipv6)?;
        let pods = pod_names.iter().cloned().map(Place::Namespace).collect();
        let node = Place::Namespace(node.clone());
        quietly("podcred initialize", node.command(&agent.display().to_string()).arg("initialize")).await?;
        // The agent's own defaults: nothing else lives in this namespace.
        let ports = Ports { hosts: Vec::new(), credentials: 80, probe: 2703, metrics: 2705 };
        Ok(Network { node, pods, ports, ipv6, namespaces: Some(namespaces) })
    }

    pub(crate) fn in_namespaces(&self) -> bool {
        self.namespaces.is_some()
    }

    pub(crate) fn uri(&self, ipv6: bool) -> String {
        match (self.in_namespaces(), ipv6) {
            (false, _) => format!("http://127.0.0.1:{}/v1/credentials", self.ports.credentials),
            (true, false) => "http://169.254.170.23/v1/credentials".to_owned(),
            (true, true) => "http://[fd00:ec2::23]/v1/credentials".to_owned(),
        }
    }

    /// STS for pods: the simulated EKS listens on the node's loopback alone, because plain http to an issuer is for
    /// loopback alone.
    pub(crate) async fn publish_sts(&self, eks: SocketAddr) -> Result<Sts> {
        if !self.in_namespaces() {
            return Ok(Sts { url: format!("http://{eks}"), _forwarder: JoinSet::new() });
        }
        let listener = self.node.listen(SocketAddr::from((BRIDGE, STS_PORT))).await?;
        let node = self.node.clone();
        let mut forwarder = JoinSet::new();
        forwarder.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((pod, _)) = listener.accept().await {
                let node = node.clone();
                connections.spawn(async move { forward(pod, &node, eks).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Sts { url: format!("http://{BRIDGE}:{STS_PORT}"), _forwarder: forwarder })
    }
}

/// STS as pods reach it, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Sts {
    pub(crate) url: String,
    _forwarder: JoinSet<()>,
}

async fn forward(mut pod: TcpStream, node: &Place, eks: SocketAddr) {
    // A pod sees a failure here as its own connection's end, and reports it.
    if let Ok(mut eks) = node.connect(eks).await {
        let _either_side_may_hang_up = copy_bidirectional(&mut pod, &mut eks).await;
    }
}

fn connect(node: &str, pods: &[String], ipv6: bool) -> Result<()> {
    let links: String = pods
        .iter()
        .zip(1..)
        .map(|(pod, n)| format!("link add pod{n} netns {node} type veth peer name eth0 netns {pod}\n"))
        .collect();
    batch(None, &links).context("cannot connect the pods' namespaces to the node's")?;
    let ends: String = (1..=pods.len()).map(|n| format!("link set pod{n} master pods0 up\n")).collect();
    batch(Some(node), &ends)?;
    for (pod, n) in pods.iter().zip(1_u16..) {
        let [high, low] = n.to_be_bytes();
        let mut script = format!(
            "link set lo up\nlink set eth0 up\naddress add 10.244.{}.{low}/16 dev eth0\nroute add default via {BRIDGE}\n",
            high + 1
        );
        if ipv6 {
            script += &format!(
                "address add fd00:10:244::1:{n:x}/64 dev eth0 nodad\nroute add ::/0 via fd00:10:244::1\n"
            );
        }
        batch(Some(pod), &script)?;
    }
    Ok(())
}

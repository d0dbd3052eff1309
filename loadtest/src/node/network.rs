//! Network namespaces, and the wires between them.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{CREDENTIALS_V4, CREDENTIALS_V6, IMDS_V4, IMDS_V6};
use crate::clock;

const BRIDGE: &str = "pods0";
const LOOPBACK: u32 = 1;
/// First byte of a hardware address that no vendor gave.
const LOCALLY_ADMINISTERED: u8 = 2;
const V4_PREFIX: u8 = 16;
const V6_PREFIX: u8 = 64;
const ROUTE_THERE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Ends when nobody holds it: no thread, no socket, no guard.
#[derive(Debug)]
pub(super) struct Namespace(File);

#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

/// A pod's link to its node. Removing it takes the pod's address off the node at once; a namespace that ends would do so
/// some time later.
#[derive(Debug)]
pub(super) struct Wire {
    node: Arc<Namespace>,
    bridge: u32,
    link: u32,
    hardware: [u8; 6],
    /// The pod's.
    pub(super) addresses: Addresses,
}

impl Addresses {
    pub(super) const NODE: u16 = 1;

    pub(super) fn node() -> Addresses {
        Addresses::numbered(Addresses::NODE)
    }

    pub(super) fn numbered(n: u16) -> Addresses {
        let [high, low] = n.to_be_bytes();
        Addresses {
            v4: Ipv4Addr::new(10, 244, high, low),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, n),
        }
    }
}

impl Namespace {
    pub(super) fn new() -> Result<Namespace> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(Namespace(file.context("a network namespace needs root")?))
    }

    pub(super) fn of_process(pid: u32) -> io::Result<Namespace> {
        File::open(format!("/proc/{pid}/ns/net")).map(Namespace)
    }

    /// Moves the calling thread.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Gives `lo` these addresses, whosever they are elsewhere.
    pub(super) fn pretend(&self, addresses: &[IpAddr]) -> Result<()> {
        self.netlink(async |netlink| {
            up(&netlink, LOOPBACK).await?;
            for address in addresses {
                add_address(&netlink, LOOPBACK, *address, if address.is_ipv4() { 32 } else { 128 }).await?;
            }
            Ok(())
        })
    }

    /// A netlink socket belongs to the namespace in which it was opened.
    fn netlink<T, F>(&self, work: impl FnOnce(Handle) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
                runtime.block_on(async {
                    let (connection, handle, _) = rtnetlink::new_connection()?;
                    tokio::spawn(connection);
                    work(handle).await
                })
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The bridge with the node's addresses, the agent's and IMDS's; its index.
pub(super) fn make_node(node: &Namespace) -> Result<u32> {
    node.netlink(async |netlink| {
        up(&netlink, LOOPBACK).await?;
        netlink.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await.context("a bridge")?;
        let bridge = index_of(&netlink, BRIDGE).await?;
        let Addresses { v4, v6 } = Addresses::node();
        add_address(&netlink, bridge, v4.into(), V4_PREFIX).await?;
        add_address(&netlink, bridge, v6.into(), V6_PREFIX).await?;
        for address in [CREDENTIALS_V4, IMDS_V4] {
            add_address(&netlink, bridge, address.into(), 32).await?;
        }
        for address in [CREDENTIALS_V6, IMDS_V6] {
            add_address(&netlink, bridge, address.into(), 128).await?;
            until_local(&netlink, address).await?;
        }
        Ok(bridge)
    })
}

impl Wire {
    /// `eth0` in the pod with these addresses and a default route over the node.
    pub(super) fn lay(
        node: &Arc<Namespace>,
        bridge: u32,
        pod: &Namespace,
        addresses: Addresses,
    ) -> Result<Wire> {
        let [c, d, e, f] = fastrand::u32(..).to_be_bytes();
        let hardware = [LOCALLY_ADMINISTERED, 0, c, d, e, f];
        let link = node.netlink(async |netlink| {
            let name = format!("pod{:04x}", fastrand::u32(..));
            let inside = LinkUnspec::new_with_name("eth0").address(hardware.to_vec());
            let inside = inside.setns_by_fd(pod.0.as_raw_fd()).build();
            let pair = LinkVeth::new(&name, "")
                .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
                .controller(bridge)
                .up();
            netlink.link().add(pair.build()).execute().await.context("a veth pair")?;
            index_of(&netlink, &name).await
        })?;
        // From here on a failure takes the pair with it.
        let wire = Wire { node: Arc::clone(node), bridge, link, hardware, addresses };
        pod.netlink(async |netlink| {
            up(&netlink, LOOPBACK).await?;
            let eth0 = index_of(&netlink, "eth0").await?;
            up(&netlink, eth0).await?;
            add_address(&netlink, eth0, addresses.v4.into(), V4_PREFIX).await?;
            add_address(&netlink, eth0, addresses.v6.into(), V6_PREFIX).await?;
            let via = Addresses::node();
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().gateway(via.v4).build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().gateway(via.v6).build();
            for route in [v4, v6] {
                netlink.route().add(route).execute().await.context("a default route")?;
            }
            Ok(())
        })?;
        Ok(wire)
    }

    /// What the node sends to this address goes over this wire from now on.
    pub(super) fn attract(&self, address: IpAddr) -> Result<()> {
        self.node.netlink(async |netlink| {
            let neighbour = netlink.neighbours().add(self.bridge, address);
            let neighbour = neighbour.link_layer_address(&self.hardware).replace();
            neighbour.execute().await.with_context(|| format!("the neighbour {address}"))
        })
    }

    /// From here on nothing comes through, in either direction.
    pub(super) fn cut(&self) -> Result<()> {
        self.node.netlink(async |netlink| {
            let down = LinkUnspec::new_with_index(self.link).down().build();
            netlink.link().set(down).execute().await.context("taking a link down")
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let removed = self.node.netlink(async |netlink| Ok(netlink.link().del(self.link).execute().await?));
        if let Err(error) = removed {
            tracing::warn!(event = "link_left_behind", error = %format!("{error:#}"), "a pod's link stays");
        }
    }
}

async fn up(netlink: &Handle, index: u32) -> Result<()> {
    let up = LinkUnspec::new_with_index(index).up().build();
    netlink.link().set(up).execute().await.context("bringing a device up")
}

async fn add_address(netlink: &Handle, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
    let mut request = netlink.address().add(index, address, prefix);
    // While duplicates are looked for, a connect() straight after would take ::1 for its source, and hang.
    request.message_mut().header.flags.insert(AddressHeaderFlags::Nodad);
    request.execute().await.with_context(|| format!("adding the address {address}"))
}

/// The kernel adds an IPv6 address at once, and later, from a work queue, the route that makes it this node's own; until then
/// packets to it leave over the bridge, where nobody has it.
async fn until_local(netlink: &Handle, address: Ipv6Addr) -> Result<()> {
    let until = clock::mono() + ROUTE_THERE;
    loop {
        let routes = netlink.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
        let routes: Vec<RouteMessage> = routes.try_collect().await.context("reading the routes")?;
        let is_local = |route: &RouteMessage| {
            let leads = RouteAttribute::Destination(RouteAddress::Inet6(address));
            route.header.kind == RouteType::Local && route.attributes.contains(&leads)
        };
        if routes.iter().any(is_local) {
            return Ok(());
        }
        ensure!(clock::mono() < until, "the kernel does not take {address} for the node's own");
        std::thread::sleep(LOOK_AGAIN);
    }
}

async fn index_of(netlink: &Handle, name: &str) -> Result<u32> {
    let link = netlink.link().get().match_name(name.to_owned()).execute().try_next().await;
    let link = link.with_context(|| format!("looking for the device {name}"))?;
    Ok(link.with_context(|| format!("there is no device {name}"))?.header.index)
}

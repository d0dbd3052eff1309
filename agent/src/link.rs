//! `podcred initialize`: the network device that holds the two link-local addresses which the AWS SDKs ask.
//!
//! It reads what is there, makes what is missing, and touches nothing that is not podcred's.

mod listening;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkDummy, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use tokio::time::sleep;
use tracing::{info, warn};

use self::listening::listening;
use crate::attribute::probe::{ProbeError, pins};
use crate::config::{InitializeConfig, Ipv6};

pub const LINK: &str = "pod-id-link0";
pub const IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 23);
pub const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23);
/// The instance metadata service, which hands out the role of the node itself.
pub const IMDS_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const IMDS_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Whether anything had to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Changed,
    AlreadySo,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(
        "{doing}: not permitted. It needs CAP_NET_ADMIN in the network namespace of the node: run as root, in a pod \
         with hostNetwork: true and securityContext.capabilities.add: [NET_ADMIN]"
    )]
    NotPermitted { doing: String },
    #[error("{doing}: {source}")]
    Kernel { doing: String, source: io::Error },
    #[error("{doing}: the kernel's answer was not understood: {detail}")]
    Protocol { doing: String, detail: String },
    #[error(
        "a device {LINK} exists, but it is of the kind {kind}, which podcred would not make: find out whose it is; if \
         it is nobody's, `ip link delete {LINK}` and run initialize again"
    )]
    WrongKind { kind: String },
    #[error(
        "{address} is already {what} {interface}: another agent may be set up here. Remove it (`ip address` and \
         `ip route` show it) and run initialize again"
    )]
    Conflict { address: IpAddr, what: &'static str, interface: String },
    #[error(
        "an agent serves {address}, and its pods would lose it with the device {LINK}: stop that agent on this node \
         first, or leave the device to it"
    )]
    Served { address: IpAddr },
    #[error(transparent)]
    Pins(#[from] ProbeError),
    #[error(
        "this network namespace has no IPv6 (no kernel support, or net.ipv6.conf.*.disable_ipv6 is 1), and --ipv6 on \
         asks for it: give --ipv6 auto or off, or turn IPv6 on"
    )]
    NoIpv6,
}

pub async fn run(config: &InitializeConfig) -> Result<Outcome, LinkError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| LinkError::Kernel { doing: "opening a netlink socket".to_owned(), source })?;
    let connection = tokio::spawn(connection);
    let netlink = Netlink { handle };
    let outcome = if config.remove { remove(&netlink).await } else { set_up(&netlink, config.ipv6).await };
    connection.abort();
    let outcome = outcome?;
    if let Some(pin) = config.pin.as_deref().filter(|_| config.remove)
        && pins::clear(pin)?
    {
        info!(pin = %pin.display(), "removed what was pinned");
        return Ok(Outcome::Changed);
    }
    Ok(outcome)
}

/// As [`run`], and where an agent serves on the device that is to be removed, again until it does not.
pub async fn run_until_free(config: &InitializeConfig) -> Result<Outcome, LinkError> {
    let mut told = false;
    loop {
        match run(config).await {
            Err(problem @ LinkError::Served { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(event = "link_in_use", %problem, "waiting to remove the device until no agent serves on it");
                }
                sleep(LOOK_AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn set_up(netlink: &Netlink, ipv6: Ipv6) -> Result<Outcome, LinkError> {
    let existing = netlink.link().await?;
    let mut wanted = vec![IpAddr::V4(IPV4)];
    if ipv6 != Ipv6::Off {
        wanted.push(IpAddr::V6(IPV6));
    }
    // Before the first change, so that a node with a conflict stays as it was.
    netlink.refuse_conflicts(&wanted, existing.as_ref().map(index)).await?;

    let mut changes = Vec::new();
    let link = match existing {
        Some(link) => link,
        None => {
            changes.push(netlink.make_link().await?);
            netlink.link().await?.ok_or_else(|| LinkError::Protocol {
                doing: format!("reading the device {LINK} just made"),
                detail: "it is gone".to_owned(),
            })?
        }
    };
    let index = index(&link);
    // First up, then the addresses: IPv6 gives an address its route when the device is up.
    if !link.header.flags.contains(LinkFlags::Up) {
        netlink.bring_up(index).await?;
        changes.push("brought it up".to_owned());
    }
    for &address in &wanted {
        if !netlink.addresses().await?.contains(&(index, address)) {
            match netlink.add_address(index, address).await {
                Err(LinkError::NoIpv6) if ipv6 == Ipv6::Auto => {
                    info!(%address, "address left out: this network namespace has no IPv6");
                    continue;
                }
                result => result?,
            }
            changes.push(format!("added the address {address}"));
        }
        if !netlink.routes().await?.contains(&(index, address)) {
            netlink.add_route(index, address).await?;
            changes.push(format!("added the route to {address}"));
        }
    }
    tell_who_serves(&wanted);
    if changes.is_empty() {
        info!(link = LINK, "already set up: nothing to do");
        return Ok(Outcome::AlreadySo);
    }
    info!(link = LINK, "set up: {}", changes.join(", "));
    Ok(Outcome::Changed)
}

/// The official agent's link is podcred's too, and by itself no sign of it; its listener is one.
fn tell_who_serves(ours: &[IpAddr]) {
    let listening = match listening() {
        Ok(listening) => listening,
        Err(error) => {
            warn!(event = "listeners_unknown", %error, "cannot determine whether another agent serves here already");
            return;
        }
    };
    if let Some(address) = listening.iter().find(|address| ours.contains(address)) {
        warn!(
            event = "port_taken",
            %address,
            "another agent already serves this address. If it is the EKS Pod Identity Agent, keep it off this node \
             (docs/migrate.md): `podcred server` waits for the port, and takes it as soon as that agent ends"
        );
    } else if listening.iter().any(IpAddr::is_unspecified) {
        warn!(
            event = "port_taken",
            "a process listens on port 80 of all addresses, so `podcred server` cannot serve on this link's. If it is an \
             ingress on the host's network, make it listen only on the addresses it needs"
        );
    }
}

/// The addresses and routes go with their device.
async fn remove(netlink: &Netlink) -> Result<Outcome, LinkError> {
    let Some(link) = netlink.link().await? else {
        info!(link = LINK, "not there: nothing to remove");
        return Ok(Outcome::AlreadySo);
    };
    let ours = [IpAddr::V4(IPV4), IpAddr::V6(IPV6)];
    let listening = listening().map_err(|source| LinkError::Kernel {
        doing: "reading who listens on the device".to_owned(),
        source,
    })?;
    if let Some(address) = listening.into_iter().find(|address| ours.contains(address)) {
        return Err(LinkError::Served { address });
    }
    let removed = netlink.handle.link().del(index(&link)).execute().await;
    match removed.map_err(|e| problem(format!("removing the device {LINK}"), e)) {
        Err(e) if e.is(Errno::NODEV) => Ok(Outcome::AlreadySo),
        Err(e) => Err(e),
        Ok(()) => {
            info!(link = LINK, "removed");
            Ok(Outcome::Changed)
        }
    }
}

struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// podcred's device, if there is one.
    async fn link(&self) -> Result<Option<LinkMessage>, LinkError> {
        let found = self.handle.link().get().match_name(LINK).execute().try_next().await;
        let link = match found.map_err(|e| problem(format!("looking for the device {LINK}"), e)) {
            Err(e) if e.is(Errno::NODEV) => return Ok(None),
            found => found?,
        };
        match link.as_ref().map(kind) {
            None | Some(Some(InfoKind::Dummy | InfoKind::Bridge)) => Ok(link),
            Some(other) => {
                let kind = other.map_or_else(|| "hardware".to_owned(), |kind| kind.to_string());
                Err(LinkError::WrongKind { kind })
            }
        }
    }

    /// A dummy device; where the kernel has none, a bridge without ports, which holds addresses just as well.
    async fn make_link(&self) -> Result<String, LinkError> {
        let dummy = self.handle.link().add(LinkDummy::new(LINK).build()).execute().await;
        match dummy.map_err(|e| problem(format!("making the dummy device {LINK}"), e)) {
            Ok(()) => return Ok("made a dummy device".to_owned()),
            Err(e) if e.is(Errno::EXIST) => return Ok("found it just made by another process".to_owned()),
            Err(e) if e.is(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
        warn!(link = LINK, "this kernel has no dummy devices: creating a bridge without ports instead");
        let bridge = self.handle.link().add(LinkBridge::new(LINK).build()).execute().await;
        bridge.map_err(|e| problem(format!("making the bridge {LINK}"), e))?;
        Ok("made a bridge without ports".to_owned())
    }

    async fn bring_up(&self, index: u32) -> Result<(), LinkError> {
        let up = LinkUnspec::new_with_index(index).up().build();
        let result = self.handle.link().set(up).execute().await;
        result.map_err(|e| problem(format!("bringing {LINK} up"), e))
    }

    async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), LinkError> {
        let mut request = self.handle.address().add(index, address, full_prefix(address));
        if address.is_ipv6() {
            // Nobody else can have the address on a device without neighbours, and until duplicate detection ends
            // (a second) the agent could not bind to it.
            request.message_mut().header.flags.insert(AddressHeaderFlags::Nodad);
        }
        match request.execute().await.map_err(|e| problem(format!("adding {address} to {LINK}"), e)) {
            Err(e) if e.is(Errno::EXIST) => Ok(()),
            // EACCES: disable_ipv6 (a missing capability is EPERM). EOPNOTSUPP, EAFNOSUPPORT: a kernel without IPv6.
            Err(e)
                if address.is_ipv6()
                    && [Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT].iter().any(|n| e.is(*n)) =>
            {
                Err(LinkError::NoIpv6)
            }
            result => result,
        }
    }

    async fn add_route(&self, index: u32, address: IpAddr) -> Result<(), LinkError> {
        let doing = || format!("adding the route to {address} on {LINK}");
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, full_prefix(address))
            .map_err(|e| LinkError::Protocol { doing: doing(), detail: e.to_string() })?
            .output_interface(index);
        if address.is_ipv4() {
            route = route.scope(RouteScope::Link);
        }
        let added = self.handle.route().add(route.build()).execute().await;
        match added.map_err(|e| problem(doing(), e)) {
            Err(e) if e.is(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    async fn refuse_conflicts(&self, wanted: &[IpAddr], own: Option<u32>) -> Result<(), LinkError> {
        let foreign = |(index, address): &(u32, IpAddr)| Some(*index) != own && wanted.contains(address);
        let taken = self.addresses().await?.into_iter().find(foreign).map(|t| (t, "an address of"));
        let taken = match taken {
            Some(taken) => Some(taken),
            None => self.routes().await?.into_iter().find(foreign).map(|t| (t, "routed to")),
        };
        let Some(((index, address), what)) = taken else { return Ok(()) };
        Err(LinkError::Conflict { address, what, interface: self.interface_name(index).await })
    }

    /// Every address here, with the index of its device.
    async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, LinkError> {
        let messages: Result<Vec<_>, _> = self.handle.address().get().execute().try_collect().await;
        let messages = messages.map_err(|e| problem("reading the addresses".to_owned(), e))?;
        Ok(messages.iter().filter_map(|m| Some((m.header.index, local_address(m)?))).collect())
    }

    /// Every route to a single address in the main table, with the index of its device.
    async fn routes(&self) -> Result<Vec<(u32, IpAddr)>, LinkError> {
        let mut routes = Vec::new();
        for request in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let messages: Result<Vec<_>, _> = self.handle.route().get(request).execute().try_collect().await;
            let messages = messages.map_err(|e| problem("reading the routes".to_owned(), e))?;
            routes.extend(messages.iter().filter_map(single_address_route));
        }
        Ok(routes)
    }

    async fn interface_name(&self, index: u32) -> String {
        let link = self.handle.link().get().match_index(index).execute().try_next().await;
        let attributes = link.ok().flatten().map(|link| link.attributes).unwrap_or_default();
        let name = attributes.into_iter().find_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute { Some(name) } else { None }
        });
        name.unwrap_or_else(|| format!("the device with index {index}"))
    }
}

fn index(link: &LinkMessage) -> u32 {
    link.header.index
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else { return None };
        infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None })
    })
}

/// On point-to-point devices `Address` is the other end's, and `Local` this one's.
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            return Some(*ip);
        }
        if let AddressAttribute::Address(ip) = attribute {
            found = Some(*ip);
        }
    }
    found
}

fn single_address_route(route: &RouteMessage) -> Option<(u32, IpAddr)> {
    let destination = route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Destination(destination) = attribute else { return None };
        if let RouteAddress::Inet(ip) = destination {
            Some(IpAddr::V4(*ip))
        } else if let RouteAddress::Inet6(ip) = destination {
            Some(IpAddr::V6(*ip))
        } else {
            None
        }
    })?;
    let device = route
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })?;
    let single = route.header.table == RouteHeader::RT_TABLE_MAIN
        && route.header.destination_prefix_length == full_prefix(destination);
    single.then_some((device, destination))
}

fn problem(doing: String, error: rtnetlink::Error) -> LinkError {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return LinkError::Protocol { doing, detail: error.to_string() };
    };
    let source = message.to_io();
    if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
        return LinkError::NotPermitted { doing };
    }
    LinkError::Kernel { doing, source }
}

impl LinkError {
    fn is(&self, errno: Errno) -> bool {
        matches!(self, LinkError::Kernel { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

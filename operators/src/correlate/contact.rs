//! Whether two alerting endpoints spoke to each other: the evidence of lateral movement.
//!
//! Pure functions of what the log lines named. Loopback, unspecified, multicast and broadcast addresses
//! say nothing about who spoke to whom and never count; neither does an address that the endpoint has
//! itself (a container bridge or a NAT address that every host has).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use logster_schema::{AlertUpdate, Peer, Platform, TimeMs, time};

/// The other side of a connection, brought into one form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// IPv4 (mapped IPv6 too) or IPv6 without zone.
    Ip(IpAddr),
    /// Host name in lower case, without a final dot.
    Name(String),
}

impl Address {
    /// Reads an address or a name as logged; `None` where it cannot be evidence.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('[').trim_end_matches(']');
        let bare = text.split_once('%').map_or(text, |(bare, _zone)| bare);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
            let mute = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || broadcast;
            return (!mute).then_some(Self::Ip(ip));
        }
        let name = text.trim_end_matches('.').to_lowercase();
        let mute = name.is_empty() || name == "-" || name == "localhost" || name.starts_with("localhost.");
        (!mute).then_some(Self::Name(name))
    }

    /// Likely another endpoint of the fleet: a private or link-local address, or a name without a domain.
    fn is_near(&self) -> bool {
        match self {
            Self::Ip(IpAddr::V4(v4)) => {
                let carrier_grade_nat = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
                v4.is_private() || v4.is_link_local() || carrier_grade_nat
            }
            Self::Ip(IpAddr::V6(v6)) => v6.is_unique_local() || v6.is_unicast_link_local(),
            Self::Name(name) => !name.contains('.'),
        }
    }

    /// A name speaks of `host` if they are equal, or if one is the other's first label.
    fn names(&self, host: &str) -> bool {
        let Self::Name(name) = self else { return false };
        let short = |long: &str, label: &str| !label.contains('.') && long.split('.').next() == Some(label);
        name == host || short(name, host) || short(host, name)
    }
}

/// Adds a window's `peers` to an alert's, at most `limit` by remote address and port, earliest contact each.
///
/// What could be another endpoint stays first, then what was seen first: a set's best do not depend on the
/// order in which it was collected.
pub fn merge_peers(kept: &mut Vec<Peer>, new: &[Peer], limit: usize) {
    // Windows overlap: most of a detection's peers are those of the one before.
    let told = |p: &Peer, k: &Peer| k.port == p.port && k.remote == p.remote && (k.first_seen, k) <= (p.first_seen, p);
    if new.iter().all(|p| kept.iter().any(|k| told(p, k))) {
        return;
    }
    let mut best: BTreeMap<(Address, u16), Peer> = BTreeMap::new();
    for peer in kept.drain(..).chain(new.iter().cloned()) {
        let Some(address) = Address::parse(&peer.remote) else { continue };
        let slot = best.entry((address, peer.port)).or_insert_with(|| peer.clone());
        if (peer.first_seen, &peer) < (slot.first_seen, &*slot) {
            *slot = peer;
        }
    }
    let mut ranked: Vec<_> = best.into_iter().collect();
    ranked.sort_by_cached_key(|((address, port), peer)| {
        (Reverse(address.is_near()), peer.first_seen, address.clone(), *port)
    });
    ranked.truncate(limit);
    ranked.sort();
    kept.extend(ranked.into_iter().map(|(_, peer)| peer));
}

/// Adds a window's own addresses to an alert's: sorted, at most `limit`.
pub fn merge_addresses(kept: &mut Vec<String>, new: &[String], limit: usize) {
    if new.iter().all(|address| kept.contains(address)) {
        return;
    }
    let all: BTreeSet<String> =
        kept.drain(..).chain(new.iter().cloned()).filter(|text| Address::parse(text).is_some()).collect();
    kept.extend(all.into_iter().take(limit));
}

/// One endpoint's network event that reached the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contact {
    /// First time.
    pub at: TimeMs,
    /// In words: source, destination, port and time.
    pub sentence: String,
}

/// What of an alert decides its contacts, parsed once.
#[derive(Clone, Debug)]
pub struct Reach {
    host: String,
    platform: Platform,
    own: BTreeSet<Address>,
    peers: Vec<(Address, Peer)>,
}

impl Reach {
    /// Of this alert.
    pub fn of(update: &AlertUpdate) -> Self {
        let own = update.local_addresses.iter().filter_map(|text| Address::parse(text));
        let peers = update.peers.iter().filter_map(|peer| Some((Address::parse(&peer.remote)?, peer.clone())));
        Self::new(&update.alert.endpoint_id, update.alert.platform, own, peers)
    }

    fn new(
        host: &str,
        platform: Platform,
        own: impl IntoIterator<Item = Address>,
        peers: impl IntoIterator<Item = (Address, Peer)>,
    ) -> Self {
        let own: BTreeSet<Address> = own.into_iter().collect();
        let other = |address: &Address| !own.contains(address) && !address.names(host);
        let peers = peers.into_iter().filter(|(address, _)| other(address)).collect();
        Self { host: host.to_owned(), platform, own, peers }
    }

    /// The earliest contact between two endpoints, seen from either side.
    pub fn contact(&self, other: &Self) -> Option<Contact> {
        self.contacts_with(other).chain(other.contacts_with(self)).min()
    }

    fn contacts_with<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Contact> + 'a {
        let hits = |address: &Address| other.own.contains(address) || address.names(&other.host);
        self.peers.iter().filter(move |(address, _)| hits(address)).map(|(_, peer)| self.describe(peer, other))
    }

    /// A log line of `self` names `peer`, which is `other`. Whose port is a client's tells who called whom.
    fn describe(&self, peer: &Peer, other: &Self) -> Contact {
        let ephemeral = match other.platform {
            Platform::Windows => 49_152,
            Platform::Linux => 32_768,
        };
        let local = peer.local.as_ref().map_or(String::new(), |ip| format!(" ({ip})"));
        let remote = if peer.remote == other.host { String::new() } else { format!(" ({})", peer.remote) };
        let at = time::format(peer.first_seen);
        let (me, you, port) = (&self.host, &other.host, peer.port);
        let sentence = if port >= ephemeral {
            format!("{you}{remote} connected from port {port} to {me}{local} at {at}")
        } else if port == 0 {
            format!("{me}{local} connected to {you}{remote} at {at}")
        } else {
            format!("{me}{local} connected to {you}{remote} port {port} at {at}")
        };
        Contact { at: peer.first_seen, sentence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_say_nothing() {
        for mute in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "255.255.255.255", "127.8.8.8"] {
            assert_eq!(Address::parse(mute), None, "{mute}");
        }
        for mute in ["", " ", "-", "localhost", "LOCALHOST.localdomain", "::ffff:127.0.0.1", "[::1]", "::1%lo"] {
            assert_eq!(Address::parse(mute), None, "{mute}");
        }
        assert_eq!(Address::parse("::ffff:10.0.0.1"), Address::parse("10.0.0.1"));
        assert_eq!(Address::parse("fe80::1%eth0"), Address::parse("FE80::1"));
        assert_eq!(Address::parse("DC01.corp.local."), Some(Address::Name("dc01.corp.local".into())));
    }

    #[test]
    fn names_match_with_and_without_domain() {
        let name = |text| Address::parse(text).unwrap();
        assert!(name("dc01").names("dc01"));
        assert!(name("dc01.corp.local").names("dc01"));
        assert!(name("dc01").names("dc01.corp.local"));
        assert!(!name("dc01.a.org").names("dc01.b.org"));
        assert!(!name("dc011").names("dc01"));
        assert!(!name("10.0.0.1").names("10.0.0.1"), "an address is no name");
    }

    /// Two hosts with the same container bridge, of which each speaks to its own.
    #[test]
    fn an_address_of_ones_own_is_no_contact() {
        let reach = |host: &str, remote: &str| {
            let address = Address::parse(remote).unwrap();
            let peer = Peer { local: None, remote: remote.into(), port: 80, first_seen: 5 };
            let own = ["172.17.0.1", if host == "a" { "10.0.0.1" } else { "10.0.0.2" }];
            Reach::new(host, Platform::Linux, own.iter().filter_map(|ip| Address::parse(ip)), [(address, peer)])
        };
        assert_eq!(reach("a", "172.17.0.1").contact(&reach("b", "172.17.0.1")), None);
        assert_eq!(reach("a", "a.local").contact(&reach("b", "8.8.8.8")), None);
        let found = reach("a", "8.8.8.8").contact(&reach("b", "10.0.0.1")).unwrap();
        assert_eq!(found.sentence, "b connected to a (10.0.0.1) port 80 at 1970-01-01T00:00:00.005Z");
    }

    #[test]
    fn near_peers_stay_in_any_order() {
        let peer = |remote: &str, first_seen| Peer { local: None, remote: remote.into(), port: 443, first_seen };
        let all = [peer("8.8.8.8", 1), peer("10.0.0.9", 7), peer("127.0.0.1", 0), peer("10.0.0.9", 5), peer("web", 9)];
        let mut a = Vec::new();
        merge_peers(&mut a, &all, 2);
        let mut b = Vec::new();
        for p in all.iter().rev() {
            merge_peers(&mut b, std::slice::from_ref(p), 2);
        }
        assert_eq!(a, b);
        assert_eq!(a, [peer("10.0.0.9", 5), peer("web", 9)]);
    }
}

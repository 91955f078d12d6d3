// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Virtio devices of `rvmm run`, beside disks.

use std::path::PathBuf;
use std::str::FromStr;

use rvmm_vm::virtio::balloon::Balloon;
use rvmm_vm::virtio::console::Console;
use rvmm_vm::virtio::net::Net;
use rvmm_vm::virtio::rng::Rng;
use rvmm_vm::virtio::share::{Directory, Share};
use rvmm_vm::virtio::user::{Forward, Network, UserNetwork};
use rvmm_vm::virtio::vsock::Vsock;
use rvmm_vm::virtio::Backend;
use rvmm_vm::Error;

/// Options of `rvmm run` that give the guest virtio devices.
#[derive(clap::Args)]
#[group(id = "devices")]
pub struct Args {
    /// Network card [,tcp=HOST:GUEST][,mac=ADDRESS]; may be repeated.
    #[arg(long, value_name = "tap=NAME|user")]
    net: Vec<Card>,
    /// Directory for `mount -t virtiofs TAG` [share]; may be repeated.
    #[arg(long, value_name = "[TAG=]DIR", value_parser = Shared::parse)]
    share: Vec<Shared>,
    /// Source of entropy.
    #[arg(long)]
    rng: bool,
    /// Sockets to the host, for a guest with this CID.
    #[arg(long, value_name = "CID", value_parser = cid)]
    vsock: Option<u32>,
    /// Second console (hvc0): a terminal, and a link to it at PATH.
    #[arg(long, value_name = "PATH")]
    console: Option<PathBuf>,
    /// Balloon: memory that can be had back (`rvmm ctl`).
    #[arg(long)]
    balloon: bool,
}

/// A CID that a guest can have: others are the hypervisor's, this host's, or anybody's.
pub fn cid(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(cid @ 3..=0xffff_fffe) => Ok(cid),
        _ => Err("a guest's CID is a number from 3 to 4294967294".into()),
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Card {
    link: Link,
    mac: Option<[u8; 6]>,
}

/// What a card is on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    Tap(String),
    User(Vec<Forward>),
}

impl FromStr for Card {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut link, mut mac, mut forwards) = (None, None, Vec::new());
        for word in text.split(',') {
            match word.split_once('=').unwrap_or((word, "")) {
                ("tap", name) if (1..16).contains(&name.len()) => link = Some(Link::Tap(name.into())),
                ("user", "") => link = Some(Link::User(Vec::new())),
                ("tcp", ports) => forwards.push(parse_forward(ports)?),
                ("mac", address) => mac = Some(parse_mac(address)?),
                _ => {
                    return Err(format!(
                        "{word} is none of tap=NAME, of 1 to 15 letters, user, tcp=HOST:GUEST, mac=ADDRESS"
                    ))
                }
            }
        }
        let link = match link.ok_or("tap=NAME or user is wanted")? {
            Link::User(_) => Link::User(forwards),
            Link::Tap(_) if !forwards.is_empty() => {
                return Err("tcp=HOST:GUEST goes with user".into())
            }
            tap => tap,
        };
        Ok(Self { link, mac })
    }
}

fn parse_forward(text: &str) -> Result<Forward, String> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    let ports = text.split_once(':');
    let ports = ports.and_then(|(host, guest)| Some((port(host)?, port(guest)?)));
    let (host, guest) =
        ports.ok_or_else(|| format!("{text} is no pair of ports such as 8080:80"))?;
    Ok(Forward { host, guest })
}

/// The name in `tap=NAME`.
#[cfg(target_arch = "x86_64")]
pub fn tap(text: &str) -> Result<String, String> {
    match text.parse()? {
        Card {
            link: Link::Tap(tap),
            mac: None,
        } => Ok(tap),
        _ => Err("a card keeps its address, and its network in user mode".into()),
    }
}

/// A directory of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    tag: String,
    path: PathBuf,
}

impl Shared {
    fn parse(text: &str) -> Result<Self, String> {
        let (tag, path) = text.split_once('=').unwrap_or(("share", text));
        Ok(Self {
            tag: tag.into(),
            path: path.into(),
        })
    }
}

/// What serves devices, and outlives a reset.
pub struct Helpers {
    cards: Vec<On>,
    directories: Vec<Directory>,
}

enum On {
    Tap(String),
    User(Network),
}

fn cannot(what: &str) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Device {
        what: what.into(),
        source,
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bad = || format!("{text} is no address of a card such as 52:54:00:12:34:56");
    let bytes = text.split(':').map(|byte| {
        let digits = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = digits.then(|| u8::from_str_radix(byte, 16).ok()).flatten();
        byte.ok_or_else(bad)
    });
    let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
    match <[u8; 6]>::try_from(bytes) {
        Ok(mac) if mac[0] & 1 == 0 => Ok(mac),
        _ => Err(bad()),
    }
}

impl Args {
    /// The directories in which devices make something.
    pub fn directories(&self) -> Vec<PathBuf> {
        let console = self.console.iter();
        console.map(|path| crate::run::directory(path)).collect()
    }

    /// Starts the programs that devices take.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn start(&self) -> rvmm_vm::Result<Helpers> {
        let on = |card: &Card| match &card.link {
            Link::Tap(name) => Ok(On::Tap(name.clone())),
            Link::User(forwards) => UserNetwork::start(forwards).map(On::User),
        };
        let cards = self.net.iter().map(on).collect::<std::io::Result<_>>();
        let share = |(n, Shared { tag, path }): (usize, &Shared)| {
            let started = match self.share.iter().take(n).any(|other| other.tag == *tag) {
                true => Err(std::io::Error::other(format!("{tag} is another one's tag"))),
                false => Directory::start(path, tag),
            };
            started.map_err(cannot(&format!("directory {} (--share)", path.display())))
        };
        Ok(Helpers {
            cards: cards.map_err(cannot("network in user mode"))?,
            directories: self
                .share
                .iter()
                .enumerate()
                .map(share)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Makes the devices.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn make(&self, helpers: &Helpers) -> rvmm_vm::Result<Vec<Box<dyn Backend>>> {
        let mut devices: Vec<Box<dyn Backend>> = Vec::new();
        for (Card { mac, .. }, on) in self.net.iter().zip(&helpers.cards) {
            let card = match on {
                On::Tap(tap) => {
                    Net::tap(tap, *mac).map_err(cannot(&format!("tap interface {tap}")))?
                }
                On::User(network) => {
                    Net::user(network.clone(), *mac).map_err(cannot("network card"))?
                }
            };
            devices.push(Box::new(card));
        }
        for directory in &helpers.directories {
            devices.push(Box::new(Share::new(directory.clone())));
        }
        if self.rng {
            let rng = Rng::new().map_err(cannot("source of entropy"))?;
            devices.push(Box::new(rng));
        }
        if let Some(cid) = self.vsock {
            let sockets = Vsock::new(cid).map_err(cannot("sockets (--vsock)"))?;
            devices.push(Box::new(sockets));
        }
        if let Some(path) = &self.console {
            let what = format!("terminal at {}", path.display());
            devices.push(Box::new(Console::new(path).map_err(cannot(&what))?));
        }
        if self.balloon {
            devices.push(Box::new(Balloon::new()));
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_consistent() {
        <crate::Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn cards() {
        let parse = |text: &str| text.parse::<Card>();
        let mac = Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let link = Link::Tap("t0".into());
        assert_eq!(
            parse("tap=t0,mac=52:54:00:12:34:56"),
            Ok(Card { link, mac })
        );
        assert_eq!(parse("tap=t0").unwrap().mac, None);
        let forwards = [(8080, 80), (1, 65535)].map(|(host, guest)| Forward { host, guest });
        assert_eq!(
            parse("tcp=8080:80,user,tcp=1:65535").unwrap().link,
            Link::User(forwards.into())
        );
        for bad in [
            "",
            "tap",
            "tap=",
            "tap=0123456789abcdef",
            "mac=52:54:00:12:34:56",
            "tap=t,mac=1",
            "tap=t,mac=53:54:00:12:34:56",
            "tap=t,mac=52:54:00:12:34:+6",
            "tap=t,tcp=1:2",
            "tcp=1:2",
            "user=1",
            "user,tcp=1",
            "user,tcp=0:1",
            "user,tcp=1:65536",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

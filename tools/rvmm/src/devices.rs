// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Virtio devices of `rvmm run`, beside disks.

use std::path::PathBuf;
use std::str::FromStr;

use rvmm_vm::virtio::balloon::Balloon;
use rvmm_vm::virtio::console::Console;
use rvmm_vm::virtio::net::Net;
use rvmm_vm::virtio::rng::Rng;
use rvmm_vm::virtio::vsock::Vsock;
use rvmm_vm::virtio::Backend;
use rvmm_vm::Error;

/// Options of `rvmm run` that give the guest virtio devices.
#[derive(clap::Args)]
#[group(id = "devices")]
pub struct Args {
    /// Network card on a tap interface; may be repeated.
    #[arg(long, value_name = "tap=NAME[,mac=ADDRESS]")]
    net: Vec<Card>,
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
    tap: String,
    mac: Option<[u8; 6]>,
}

impl FromStr for Card {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut tap, mut mac) = (None, None);
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("tap", name)) if (1..16).contains(&name.len()) => tap = Some(name.to_owned()),
                Some(("mac", address)) => mac = Some(parse_mac(address)?),
                _ => {
                    return Err(format!(
                        "{word} is neither tap=NAME, of 1 to 15 letters, nor mac=ADDRESS"
                    ))
                }
            }
        }
        let tap = tap.ok_or("there are cards on tap interfaces only: tap=NAME")?;
        Ok(Self { tap, mac })
    }
}

/// The name in `tap=NAME`.
#[cfg(target_arch = "x86_64")]
pub fn tap(text: &str) -> Result<String, String> {
    match text.parse()? {
        Card { tap, mac: None } => Ok(tap),
        _ => Err("a card keeps its address".into()),
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

    /// Makes the devices.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn make(&self) -> rvmm_vm::Result<Vec<Box<dyn Backend>>> {
        let mut devices: Vec<Box<dyn Backend>> = Vec::new();
        for Card { tap, mac } in &self.net {
            let card = Net::tap(tap, *mac).map_err(|source| Error::Device {
                what: format!("tap interface {tap}"),
                source,
            })?;
            devices.push(Box::new(card));
        }
        if self.rng {
            let rng = Rng::new().map_err(|source| Error::Device {
                what: "source of entropy".into(),
                source,
            })?;
            devices.push(Box::new(rng));
        }
        if let Some(cid) = self.vsock {
            let sockets = Vsock::new(cid).map_err(|source| Error::Device {
                what: "sockets (--vsock)".into(),
                source,
            })?;
            devices.push(Box::new(sockets));
        }
        if let Some(path) = &self.console {
            let console = Console::new(path).map_err(|source| Error::Device {
                what: format!("terminal at {}", path.display()),
                source,
            })?;
            devices.push(Box::new(console));
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
        let card = "tap=t0,mac=52:54:00:12:34:56".parse::<Card>().unwrap();
        assert_eq!(
            (card.tap.as_str(), card.mac),
            ("t0", Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]))
        );
        assert_eq!("tap=t0".parse::<Card>().unwrap().mac, None);
        for bad in [
            "user",
            "",
            "tap=",
            "tap=0123456789abcdef",
            "mac=52:54:00:12:34:56",
            "tap=t,mac=1",
            "tap=t,mac=53:54:00:12:34:56",
            "tap=t,mac=52:54:00:12:34:+6",
        ] {
            assert!(bad.parse::<Card>().is_err(), "{bad}");
        }
    }
}

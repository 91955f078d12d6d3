// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The address of a PCI function, as users and sysfs write it.

use std::fmt;
use std::str::FromStr;

/// Address of a PCI function: `0000:00:04.0`, or without the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// PCI segment ("domain").
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub slot: u8,
    /// Function of the device, below 8.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment, self.bus, self.slot, self.function
        )
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let hex = |part: Option<&str>| u16::from_str_radix(part?, 16).ok();
            let slot = hex(parts.next())?;
            let bus = hex(parts.next())?;
            let segment = match parts.next() {
                None => 0,
                part => hex(part)?,
            };
            let function = hex(Some(function))?;
            if parts.next().is_some() || slot > 31 || function > 7 {
                return None;
            }
            Some(Self {
                segment,
                bus: u8::try_from(bus).ok()?,
                slot: slot as u8,
                function: function as u8,
            })
        };
        parse().ok_or_else(|| format!("{text} is no PCI address such as 0000:00:04.0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Address>().map(|a| a.to_string());
        assert_eq!(parse("00:04.0").unwrap(), "0000:00:04.0");
        assert_eq!(parse("0001:fe:1f.7").unwrap(), "0001:fe:1f.7");
        for bad in [
            "",
            "04.0",
            "00:20.0",
            "00:04.8",
            "0:0:0:0.0",
            "00:04",
            "100:04.0",
            "x:y.z",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

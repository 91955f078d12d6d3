// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Byte counts as people write them: `512M`, `2G`, `4096`.

/// Parses a byte count with an optional binary suffix (`K`, `M`, `G`, `T`, also `MiB` and the like).
///
/// # Errors
///
/// A sentence naming what is wrong with `text`.
///
/// ```
/// assert_eq!(rvmm_vm::size::parse("512M"), Ok(512 << 20));
/// assert_eq!(rvmm_vm::size::parse("2GiB"), Ok(2 << 30));
/// assert!(rvmm_vm::size::parse("lots").is_err());
/// ```
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("\"{text}\" is not a size; write for example 512M or 2G"))?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => {
            return Err(format!(
                "unknown unit \"{other}\" in \"{text}\"; use K, M, G or T"
            ))
        }
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("\"{text}\" is larger than 64 bits can hold"))
}

/// Writes a byte count with the largest binary unit that divides it.
///
/// ```
/// assert_eq!(rvmm_vm::size::show(512 << 20), "512M");
/// ```
pub fn show(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes % (1 << shift) == 0 {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_suffixed() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64k"), Ok(65536));
        assert_eq!(parse(" 3 GiB "), Ok(3 << 30));
        assert_eq!(parse("0"), Ok(0));
    }

    #[test]
    fn refuses_nonsense_and_overflow() {
        for bad in [
            "",
            "M",
            "-1",
            "1.5G",
            "12Q",
            "0x1000",
            "99999999999999999999",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("16777216T").is_err());
        assert_eq!(parse("16777215T"), Ok(16_777_215 << 40));
    }

    #[test]
    fn shows_what_it_parses() {
        for bytes in [1, 4096, 512 << 20, 3 << 30, (1 << 20) + 1] {
            assert_eq!(parse(&show(bytes)), Ok(bytes));
        }
    }
}

// SPDX-License-Identifier: GPL-2.0
//! The module's parameters, as `module!` declares them in `main`.

/// `enable_apicv`: whether the processor virtualises local APICs; `None` where that depends on the processor.
#[cfg(CONFIG_X86_64)]
pub(crate) fn enable_apicv() -> Option<bool> {
    match crate::module_parameters::enable_apicv.value() {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// `halt_poll_ns`: how long a halted vCPU polls at most.
#[cfg(CONFIG_X86_64)]
pub(crate) fn halt_poll_ns() -> u32 {
    crate::module_parameters::halt_poll_ns.value()
}

/// `halt_poll_ns_grow`, `halt_poll_ns_grow_start` and `halt_poll_ns_shrink`: how that time adapts.
#[cfg(CONFIG_X86_64)]
pub(crate) fn halt_poll_steps() -> [u32; 3] {
    [
        crate::module_parameters::halt_poll_ns_grow.value(),
        crate::module_parameters::halt_poll_ns_grow_start.value(),
        crate::module_parameters::halt_poll_ns_shrink.value(),
    ]
}

/// `eager_page_split`: huge leaves are split when writes to them begin to be logged.
pub(crate) fn eager_page_split() -> bool {
    crate::module_parameters::eager_page_split.value()
}

/// `check_flushes`: it is kept what was flushed when, and entries with translations that have gone are refused.
#[cfg(CONFIG_ARM64)]
#[inline]
pub(crate) fn check_flushes() -> bool {
    crate::module_parameters::check_flushes.value() != 0
}

/// `oracle`: what a VM has come to is compared with its rules after each ioctl.
#[inline]
pub(crate) fn oracle() -> bool {
    crate::module_parameters::oracle.value()
}

/// `ignore_msrs`: MSRs that are not there read as 0 and may be written.
#[cfg(CONFIG_X86_64)]
pub(crate) fn ignore_msrs() -> bool {
    crate::module_parameters::ignore_msrs.value()
}

/// `nx_huge_pages`: whether huge pages of guests are for data alone; `None` where that depends on the processor.
#[cfg(CONFIG_X86_64)]
pub(crate) fn nx_huge_pages() -> Option<bool> {
    match crate::module_parameters::nx_huge_pages.value() {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// `nx_huge_pages_recovery_ratio` and `nx_huge_pages_recovery_period_ms`: how many of those that were split for code
/// are joined at a time, and how often.
#[cfg(CONFIG_X86_64)]
pub(crate) fn nx_huge_pages_recovery() -> (u32, u32) {
    (
        crate::module_parameters::nx_huge_pages_recovery_ratio.value(),
        crate::module_parameters::nx_huge_pages_recovery_period_ms.value(),
    )
}

/// No huge page is for data alone, so that none was split for code.
#[cfg(CONFIG_ARM64)]
pub(crate) fn nx_huge_pages_recovery() -> (u32, u32) {
    (0, 0)
}

/// `report_ignored_msrs`: the log says so.
#[cfg(CONFIG_X86_64)]
pub(crate) fn report_ignored_msrs() -> bool {
    crate::module_parameters::report_ignored_msrs.value()
}

/// `pml`: whether the processor logs writes to guest memory, where it can.
#[cfg(CONFIG_X86_64)]
pub(crate) fn pml() -> bool {
    crate::module_parameters::pml.value()
}

/// Whether `check_entry` is on.
#[cfg(CONFIG_X86_64)]
pub(crate) fn check_entry() -> bool {
    crate::module_parameters::check_entry.value() != 0
}

/// Whether devices may be assigned without interrupt remapping.
#[cfg(CONFIG_X86_64)]
pub(crate) fn allow_unsafe_interrupts() -> bool {
    crate::module_parameters::allow_unsafe_interrupts.value() != 0
}

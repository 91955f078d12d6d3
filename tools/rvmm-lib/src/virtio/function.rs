// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtio device as a PCI function (Virtual I/O Device 1.2, 4.1): configuration space with the capabilities that say
//! where its registers are, and those registers behind one base address register.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::msix::{Message, Table};
use super::saved::FunctionState;
use super::transport::{Action, Transport, LENGTH};
use super::worker::{event, State};
use super::{send, Backend, Registers, Ring, EVENT_IDX, INDIRECT};
use crate::error::Result;
use crate::pci::config::{cap, reg, Config, MEMORY};

/// Registers behind the base address register: 32 KiB.
pub const BAR_SIZE: u32 = 0x8000;
/// Where in it what lies.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DOORBELLS: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;
/// Bytes from one part to the next.
const PART: u64 = 0x1000;
/// Bytes from one queue's doorbell to the next (`notify_off_multiplier`).
const DOORBELL: u64 = 4;

/// Where in configuration space the capabilities are.
const CAP_MSIX: usize = 0x40;
const CAP_COMMON: usize = 0x50;
const CAP_NOTIFY: usize = 0x60;
const CAP_ISR: usize = 0x74;
const CAP_DEVICE: usize = 0x84;
const CAP_ACCESS: usize = 0x94;
/// The window of the last one into the registers.
const ACCESS_DATA: usize = CAP_ACCESS + 16;

/// The function.
pub struct Function {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    /// What the guest reads of configuration space.
    pub config: Config,
    transport: Transport,
    table: Table,
    device_config: Vec<u8>,
    registers: Option<Arc<dyn Registers>>,
    state: State,
    kicks: Vec<EventFd>,
    /// Where the doorbells are, if the guest decodes them.
    doorbells: Option<u64>,
    events: Arc<Vec<EventFd>>,
    /// What each vector's event sends now.
    routed: Vec<Option<Message>>,
    /// GSI of the first vector.
    gsi: u32,
    /// The machine has been forked: what is written to its memory has to be told before.
    tells: bool,
    /// The kernel serves queues.
    is_served_by_kernel: bool,
    /// Where the queues are of a device that stands still, and is to go on.
    frozen: Option<Vec<(u16, u16)>>,
}

impl Function {
    /// A function whose registers are at `bar` at first, and whose messages have GSIs from `gsi`.
    pub fn new(
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        backend: Box<dyn Backend>,
        bar: u64,
        gsi: u32,
    ) -> Result<Self> {
        let queues = backend.queues();
        // One for each queue, and one for the configuration.
        let vectors = queues.len() as u16 + 1;
        let config = configuration(&*backend, bar, vectors);
        let features = backend.features() | INDIRECT | EVENT_IDX;
        let transport = Transport::new(features, &queues, vectors);
        let events = (0..vectors).map(|_| event()).collect::<Result<Vec<_>>>()?;
        let events = Arc::new(events);
        let registers = backend.registers();
        if let Some(registers) = &registers {
            let (events, vector) = (events.clone(), transport.config_vector.clone());
            registers.connect(Box::new(move || send(&events, &vector)));
        }
        Ok(Self {
            vm: vm.clone(),
            memory: memory.clone(),
            config,
            transport,
            registers,
            table: Table::new(vectors),
            device_config: backend.config(),
            tells: false,
            is_served_by_kernel: backend.served_outside() > 0 && !backend.shares_memory(),
            state: State::Idle(backend),
            kicks: queues.iter().map(|_| event()).collect::<Result<_>>()?,
            doorbells: None,
            events,
            routed: vec![None; vectors.into()],
            gsi,
            frozen: None,
        })
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u32 {
        self.table.len() as u32
    }

    /// Where the registers are, if the guest decodes them.
    pub fn bar(&self) -> Option<u64> {
        let on = self.config.bytes[reg::COMMAND] & MEMORY != 0;
        on.then(|| u64::from(self.config.get(reg::BAR0) & !0xf))
    }

    /// The guest reads configuration space.
    pub fn read_config(&mut self, at: usize, data: &mut [u8]) {
        if at == ACCESS_DATA {
            if let Some((offset, length)) = self.access(data.len()) {
                self.read(offset, &mut data[..length]);
                return;
            }
        }
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self.config.bytes.get(at + n).copied().unwrap_or(0);
        }
    }

    /// The guest writes configuration space; true when messages have changed.
    pub fn write_config(&mut self, at: usize, data: &[u8]) -> bool {
        self.config.write(at, data);
        if at == ACCESS_DATA {
            if let Some((offset, length)) = self.access(data.len()) {
                return self.write(offset, &data[..length]);
            }
        }
        self.place_doorbells(self.bar());
        let control = (self.config.get(CAP_MSIX) >> 16) as u16;
        self.table.set_control(control);
        self.messages_changed()
    }

    /// Offset and length that the window of configuration space shows, if an access to it has that length (4.1.4.9).
    fn access(&self, length: usize) -> Option<(u64, usize)> {
        let (offset, wanted) = (
            self.config.get(CAP_ACCESS + 8),
            self.config.get(CAP_ACCESS + 12),
        );
        let fits = wanted as usize == length
            && matches!(length, 1 | 2 | 4)
            && offset as usize % length == 0;
        (fits && offset < BAR_SIZE).then_some((offset.into(), length))
    }

    /// The guest reads registers.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        let within = offset % PART;
        match offset - within {
            COMMON if within < LENGTH => self.transport.read(within, data),
            // No pin, so nothing to say (4.1.4.5).
            ISR => data.fill(0),
            DEVICE => {
                if let Some(registers) = &self.registers {
                    self.device_config = registers.bytes();
                }
                for (n, byte) in data.iter_mut().enumerate() {
                    *byte = self
                        .device_config
                        .get(within as usize + n)
                        .copied()
                        .unwrap_or(0);
                }
            }
            TABLE => self.table.read(within, data),
            PENDING => {
                data.fill(0);
                for (bit, event) in self.events.iter().enumerate() {
                    let at = (bit / 8) as u64;
                    if let Some(byte) = at
                        .checked_sub(within)
                        .and_then(|at| data.get_mut(at as usize))
                    {
                        *byte |= u8::from(is_set(event)) << (bit % 8);
                    }
                }
            }
            _ => {}
        }
    }

    /// The guest writes registers; true when messages have changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let within = offset % PART;
        match offset - within {
            COMMON if within < LENGTH => match self.transport.write(within, data) {
                Action::None => {}
                Action::Reset => self.stop(),
                Action::Start => self.start(None),
            },
            DEVICE => {
                if let Some(registers) = &self.registers {
                    registers.write(within, data);
                }
            }
            // The hypervisor has taken it, unless it was rung by way of configuration space.
            DOORBELLS => {
                if let Some(kick) = self.kicks.get((within / DOORBELL) as usize) {
                    let _ = kick.write(1);
                }
            }
            TABLE => {
                self.table.write(within, data);
                return self.messages_changed();
            }
            _ => {}
        }
        false
    }

    /// Starts the device's thread, whose queues are where they have been.
    fn start(&mut self, positions: Option<&[(u16, u16)]>) {
        let forked = self.tells.then(|| self.vm.clone());
        let (kicks, events) = (&self.kicks, &self.events);
        self.state.start(
            &self.transport,
            &self.memory,
            kicks,
            events,
            forked,
            positions,
        );
    }

    /// Ends the device's thread, and forgets what it had to say.
    fn stop(&mut self) {
        self.state.stop();
        for event in self.kicks.iter().chain(&*self.events) {
            let _ = event.read();
        }
    }

    /// Whether the kernel serves queues of it, and writes to the memory.
    pub fn is_served_by_kernel(&self) -> bool {
        self.is_served_by_kernel
    }

    /// Has the device, from its next start on, tell the hypervisor what it is going to write to.
    pub fn tell_writes(&mut self) {
        self.tells = true;
    }

    /// Has the device stand still: its thread ends when it has done what it is at, until [`Self::thaw`].
    pub fn freeze(&mut self) {
        let State::Running(worker) = &mut self.state else {
            return;
        };
        self.state = match worker.leave() {
            None => State::Gone,
            Some((backend, rings)) => {
                let at = |ring: &Ring| (ring.queue.next_avail(), ring.queue.next_used());
                self.frozen = Some(rings.iter().map(at).collect());
                State::Idle(backend)
            }
        };
    }

    /// Lets the device go on.
    pub fn thaw(&mut self) {
        let positions = self.frozen.take();
        if positions.is_some() && !self.transport.broken.load(Ordering::Acquire) {
            self.start(positions.as_deref());
        }
    }

    /// What a device is that stands still.
    ///
    /// # Errors
    ///
    /// Those of [`Backend::saved`].
    pub fn state(&self, parts: &mut Vec<File>) -> std::io::Result<FunctionState> {
        let State::Idle(backend) = &self.state else {
            return Err(super::cannot_be_saved());
        };
        Ok(FunctionState {
            device: backend.saved(parts)?,
            config: self.config.bytes.to_vec(),
            transport: self.transport.state(),
            table: self.table.state(),
            positions: self.frozen.clone(),
        })
    }

    /// Makes a device what it was, which goes on after [`Self::thaw`]; false if the state is of another one.
    pub fn restore(&mut self, state: &FunctionState) -> bool {
        let same = |at: usize| self.config.bytes.get(at..at + 4) == state.config.get(at..at + 4);
        let fits = state.config.len() == self.config.bytes.len()
            && [0, 8, CAP_MSIX + 4].into_iter().all(same)
            && self.transport.restore(&state.transport)
            && self.table.restore(&state.table);
        if fits {
            self.config.bytes.copy_from_slice(&state.config);
            self.frozen.clone_from(&state.positions);
            self.place_doorbells(self.bar());
        }
        fits
    }

    /// Tells the driver that every queue may have been used: what has been said of that may have got lost.
    pub fn remind(&self) {
        if let State::Running(_) = self.state {
            if self.registers.is_some() {
                send(&self.events, &self.transport.config_vector);
            }
            for queue in &self.transport.queues {
                send(&self.events, &queue.vector);
            }
        }
    }

    /// Moves the doorbells to where the guest wants them, or nowhere.
    fn place_doorbells(&mut self, want: Option<u64>) {
        if self.doorbells == want {
            return;
        }
        for (n, kick) in (0..).zip(&self.kicks) {
            let address = |bar: u64| IoEventAddress::Mmio(bar + DOORBELLS + DOORBELL * n);
            if let Some(old) = self.doorbells {
                if let Err(error) = self.vm.unregister_ioevent(kick, &address(old), NoDatamatch) {
                    tracing::debug!(%error, "KVM_IOEVENTFD");
                }
            }
            if let Some(new) = want {
                // Doorbells that come as an exit are served as well.
                if let Err(error) = self.vm.register_ioevent(kick, &address(new), NoDatamatch) {
                    tracing::debug!(%error, "KVM_IOEVENTFD");
                }
            }
        }
        self.doorbells = want;
    }

    /// Compares what the vectors send with what they shall send. Those that shall not are taken from the hypervisor:
    /// what is sent then waits in the event, and goes out when the hypervisor gets it back.
    fn messages_changed(&mut self) -> bool {
        let mut changed = false;
        for vector in 0..self.routed.len() {
            let (want, event) = (self.table.message(vector), &self.events[vector]);
            let routed = &mut self.routed[vector];
            if *routed == want {
                continue;
            }
            changed = true;
            if routed.take().is_some() {
                if let Err(error) = self.vm.unregister_irqfd(event, self.gsi + vector as u32) {
                    tracing::warn!(%error, "KVM_IRQFD");
                }
            }
        }
        changed
    }

    /// Messages that may come: GSI, address, data.
    pub fn routes(&self) -> impl Iterator<Item = (u32, u64, u32)> + '_ {
        (0..self.table.len()).filter_map(|vector| {
            let (address, data) = self.table.message(vector)?;
            Some((self.gsi + vector as u32, address, data))
        })
    }

    /// Gives the hypervisor the events of vectors that have a route now.
    pub fn connect(&mut self) {
        for (vector, routed) in self.routed.iter_mut().enumerate() {
            let want = self.table.message(vector);
            if want.is_none() || *routed == want {
                continue;
            }
            match self
                .vm
                .register_irqfd(&self.events[vector], self.gsi + vector as u32)
            {
                Ok(()) => *routed = want,
                Err(error) => tracing::warn!(%error, "KVM_IRQFD"),
            }
        }
    }
}

/// Whether an event waits.
fn is_set(event: &EventFd) -> bool {
    let mut poll = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live element, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

/// Configuration space at the start.
fn configuration(backend: &dyn Backend, bar: u64, vectors: u16) -> Config {
    let (kind, class) = backend.kind();
    let mut config = Config::new([0; 256]);
    config.set(0, (0x1040 + u32::from(kind)) << 16 | 0x1af4);
    // Capabilities, revision 1, and a subsystem that says the same as the device.
    config.bytes[reg::STATUS] = 1 << 4;
    config.set(8, class << 8 | 1);
    config.set(0x2c, (0x1040 + u32::from(kind)) << 16 | 0x1af4);
    config.set(reg::BAR0, bar as u32);
    config.allow(reg::BAR0, !(BAR_SIZE - 1));
    // Memory, bus mastering, parity and SERR.
    config.allow(reg::COMMAND, 0x0146);
    config.allow(reg::CACHE_LINE, 0xff);
    config.allow(reg::IRQ_LINE, 0xff);
    config.bytes[reg::CAPABILITIES] = CAP_MSIX as u8;

    config.set(
        CAP_MSIX,
        u32::from(vectors - 1) << 16 | (CAP_COMMON as u32) << 8 | u32::from(cap::MSIX),
    );
    config.set(CAP_MSIX + 4, TABLE as u32);
    config.set(CAP_MSIX + 8, PENDING as u32);
    config.allow(CAP_MSIX, 0xc000_0000);

    let parts = [
        (CAP_COMMON, CAP_NOTIFY, 16, 1, COMMON, LENGTH),
        (CAP_NOTIFY, CAP_ISR, 20, 2, DOORBELLS, PART),
        (CAP_ISR, CAP_DEVICE, 16, 3, ISR, 1),
        (CAP_DEVICE, CAP_ACCESS, 16, 4, DEVICE, PART),
        (CAP_ACCESS, 0, 20, 5, 0, 0),
    ];
    for (at, next, length, kind, offset, size) in parts {
        const VENDOR: u32 = 0x09;
        config.set(at, kind << 24 | length << 16 | (next as u32) << 8 | VENDOR);
        config.set(at + 8, offset as u32);
        config.set(at + 12, size as u32);
    }
    config.set(CAP_NOTIFY + 16, DOORBELL as u32);
    for at in [CAP_ACCESS + 8, CAP_ACCESS + 12, ACCESS_DATA] {
        config.allow(at, !0);
    }
    config.allow(CAP_ACCESS + 4, 0xff);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::le32;
    use crate::virtio::{Broken, Guest};

    struct Nothing;

    impl Backend for Nothing {
        fn kind(&self) -> (u16, u32) {
            (4, 0xff_00_00)
        }
        fn features(&self) -> u64 {
            0
        }
        fn queues(&self) -> Vec<u16> {
            vec![8]
        }
        fn config(&self) -> Vec<u8> {
            Vec::new()
        }
        fn serve(
            &mut self,
            _: usize,
            _: &mut [Ring],
            _: &Guest,
        ) -> std::result::Result<(), Broken> {
            Ok(())
        }
    }

    #[test]
    fn capabilities_are_a_list_without_overlap() {
        let config = configuration(&Nothing, 0xe000_0000, 2);
        let (mut at, mut kinds) = (usize::from(config.bytes[reg::CAPABILITIES]), Vec::new());
        let mut end = 0x40;
        while at != 0 {
            assert!(at >= end && at % 4 == 0);
            let kind = config.bytes[at];
            end = at
                + if kind == 9 {
                    usize::from(config.bytes[at + 2])
                } else {
                    12
                };
            kinds.push(if kind == 9 { config.bytes[at + 3] } else { 0 });
            at = usize::from(config.bytes[at + 1]);
        }
        assert_eq!(kinds, [0, 1, 2, 3, 4, 5]);
        assert_eq!(le32(&config.bytes, 0), 0x1044_1af4);
    }

    #[test]
    fn writes_anywhere_change_only_what_they_may() {
        let mut config = configuration(&Nothing, 0xe000_0000, 2);
        let before = config.bytes;
        let mut seed = 7u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            seed >> 33
        };
        for _ in 0..100_000 {
            let bytes = (random() << 32 | random()).to_le_bytes();
            config.write((random() % 300) as usize, &bytes[..(random() % 9) as usize]);
        }
        for (at, mask) in [
            (0, !0),
            (8, !0),
            (0x2c, !0),
            (CAP_MSIX, 0x3fff_ffff),
            (CAP_MSIX + 4, !0),
            (CAP_NOTIFY + 16, !0),
        ] {
            assert_eq!(config.get(at) & mask, le32(&before, at) & mask, "{at:#x}");
        }
        assert_eq!(config.get(reg::BAR0) % BAR_SIZE, 0);
    }

    #[test]
    fn the_size_of_the_registers_can_be_asked_for() {
        let mut config = configuration(&Nothing, 0xe000_8000, 2);
        config.write(reg::BAR0, &[0xff; 4]);
        assert_eq!(config.get(reg::BAR0), !(BAR_SIZE - 1));
        config.write(0, &[0xff; 4]);
        assert_eq!(config.get(0), 0x1044_1af4);
    }
}

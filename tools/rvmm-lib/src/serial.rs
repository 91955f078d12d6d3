// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The serial console: a 16550 at 0x3f8 on ISA interrupt 4; on Arm64 in memory, on the fifth shared interrupt.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{Cap, VmFd};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Device;
use crate::error::{Error, Result};
#[cfg(target_arch = "x86_64")]
use crate::snapshot::state::SerialState;

/// First port.
pub const PORT: u64 = 0x3f8;
/// Number of ports.
pub const PORTS: u64 = 8;
/// Interrupt line (GSI).
pub const IRQ: u32 = 4;

/// How the device raises its interrupt.
pub(crate) enum IrqLine {
    /// An event that the hypervisor turns into an edge (`KVM_IRQFD`).
    Event(EventFd),
    /// An edge made by two calls (`KVM_IRQ_LINE`), for a hypervisor without irqfd.
    Pulse(Arc<VmFd>, u32),
}

/// The line of the port, an event where the hypervisor has that.
pub(crate) fn irq_line(vm: &Arc<VmFd>) -> Result<IrqLine> {
    if !vm.check_extension(Cap::Irqfd) {
        return Ok(IrqLine::Pulse(vm.clone(), IRQ));
    }
    let event =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::os("eventfd"))?;
    vm.register_irqfd(&event, IRQ)
        .map_err(Error::ioctl("KVM_IRQFD"))?;
    Ok(IrqLine::Event(event))
}

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self {
            IrqLine::Event(event) => event.write(1),
            IrqLine::Pulse(vm, gsi) => {
                vm.set_irq_line(*gsi, true)?;
                vm.set_irq_line(*gsi, false)?;
                Ok(())
            }
        }
    }
}

/// Tells the event loop that the receive buffer has room again.
pub(crate) struct Drained(pub(crate) EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // The counter cannot overflow in practice and a lost wake-up only follows another one.
        let _ = self.0.write(1);
    }
}

/// What the guest has sent in one access.
#[derive(Default)]
struct Sent {
    bytes: [u8; 8],
    count: usize,
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.bytes.get_mut(self.count..).unwrap_or_default();
        let count = room.write(bytes)?;
        self.count += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<IrqLine, Drained, Sent>;

/// Register offsets and bits that decide whether the guest listens.
const IER: u8 = 1;
const LCR: u8 = 3;
const LCR_DLAB: u8 = 0x80;
const IER_RECEIVE: u8 = 0x01;
const IER_ALL: u8 = 0x0f;

/// The registers, shared by the guest's accesses and whoever hands it input.
pub(crate) struct SerialPort {
    uart: Uart,
    divisor_latch: bool,
    listening: bool,
}

impl SerialPort {
    pub(crate) fn new(irq: IrqLine, drained: EventFd) -> Self {
        let uart = Serial::with_events(irq, Drained(drained), Sent::default());
        Self {
            uart,
            divisor_latch: false,
            listening: false,
        }
    }

    /// A port as it was.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn restore(irq: IrqLine, drained: EventFd, state: &SerialState) -> io::Result<Self> {
        let [low, high, enable, identification, line, status, modem, modem_status, scratch] =
            state.registers;
        let registers = vm_superio::serial::SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status: status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: state.received.clone(),
        };
        let uart = Serial::from_state(&registers, irq, Drained(drained), Sent::default());
        Ok(Self {
            uart: uart.map_err(|error| io::Error::other(format!("{error:?}")))?,
            divisor_latch: line & LCR_DLAB != 0,
            listening: state.listening,
        })
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn state(&self) -> SerialState {
        let state = self.uart.state();
        SerialState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            received: state.in_buffer,
            listening: self.listening,
        }
    }

    /// Bytes that [`Self::enqueue`] takes now: none before the guest has opened the port, because
    /// its driver throws away what it finds there.
    pub(crate) fn room(&self) -> usize {
        if self.listening {
            self.uart.fifo_capacity()
        } else {
            0
        }
    }

    fn follow(&mut self, register: u8, value: u8) {
        match register {
            LCR => self.divisor_latch = value & LCR_DLAB != 0,
            // All four at once is how a driver probes for the register.
            IER if !self.divisor_latch => {
                let listening = value & IER_RECEIVE != 0 && value & IER_ALL != IER_ALL;
                if listening && !self.listening {
                    self.uart.events().in_buffer_empty();
                }
                self.listening = listening || (self.listening && value & IER_RECEIVE != 0);
            }
            _ => {}
        }
    }

    /// Hands received bytes to the guest; the count taken may be less than given.
    pub(crate) fn enqueue(&mut self, bytes: &[u8]) -> usize {
        self.uart.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

impl SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (step, byte) in data.iter_mut().enumerate() {
            *byte = self.uart.read(offset.wrapping_add(step as u64) as u8);
        }
    }

    /// Gives what goes out.
    fn write(&mut self, offset: u64, data: &[u8]) -> Sent {
        for (step, byte) in data.iter().enumerate() {
            let register = offset.wrapping_add(step as u64) as u8;
            if let Err(error) = self.uart.write(register, *byte) {
                tracing::debug!(%error, "serial port");
            }
            self.follow(register, *byte);
        }
        std::mem::take(self.uart.writer_mut())
    }
}

/// The device as the bus sees it. The output, which may have to wait, does so while the port can be used: the thread
/// that ends the machine needs it. A write of no bytes sends what has been left of output.
pub(crate) struct SerialDevice {
    pub(crate) port: Arc<Mutex<SerialPort>>,
    pub(crate) output: Box<dyn Write + Send>,
    /// How many accesses have sent something.
    pub(crate) sent: Arc<AtomicU64>,
}

impl Device for SerialDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.port).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let sent = lock(&self.port).write(offset, data);
        let sent = sent.bytes.get(..sent.count).unwrap_or_default();
        let written = if data.is_empty() {
            self.output.flush()
        } else if sent.is_empty() {
            return;
        } else {
            self.sent.fetch_add(1, Ordering::Relaxed);
            self.output.write_all(sent)
        };
        // A console that is gone (closed pipe) must not stop the guest.
        if let Err(error) = written {
            tracing::debug!(%error, "serial output lost");
        }
    }
}

/// Locks the port, whatever a thread that panicked left behind.
pub(crate) fn lock(port: &Mutex<SerialPort>) -> std::sync::MutexGuard<'_, SerialPort> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (SerialPort, EventFd) {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let drained = event();
        let port = SerialPort::new(IrqLine::Event(event()), drained.try_clone().unwrap());
        (port, drained)
    }

    #[test]
    fn takes_input_only_while_the_guest_listens() {
        let (mut port, drained) = port();
        assert_eq!(port.room(), 0);
        port.write(1, &[0x0f]);
        assert_eq!(port.room(), 0, "a probe is not an open port");
        port.write(1, &[0]);
        port.write(3, &[0x83]);
        port.write(1, &[1]);
        assert_eq!(port.room(), 0, "that was the divisor");
        port.write(3, &[0x03]);
        assert!(drained.read().is_err());
        port.write(1, &[0x05]);
        assert_eq!(port.room(), 64);
        assert!(drained.read().is_ok());
        port.write(1, &[0x0f]);
        assert_eq!(port.room(), 64, "transmitting meanwhile");
        port.write(1, &[0]);
        assert_eq!(port.room(), 0);
    }

    #[test]
    fn what_the_guest_sends_goes_out_while_the_port_is_free() {
        struct Looks(Arc<Mutex<SerialPort>>, Arc<Mutex<Vec<u8>>>);
        impl Write for Looks {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                assert!(self.0.try_lock().is_ok());
                self.1.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let port = Arc::new(Mutex::new(port().0));
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let output = Box::new(Looks(port.clone(), seen.clone()));
        let mut device = SerialDevice {
            port,
            output,
            sent: Arc::default(),
        };
        device.write(0, b"a");
        device.write(3, &[0x83]);
        device.write(0, b"the divisor");
        device.write(3, &[0x03]);
        device.write(0, b"b");
        assert_eq!(*seen.lock().unwrap(), b"ab");
        assert_eq!(device.sent.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_port_comes_back_as_it_was() {
        let (mut port, _) = port();
        port.write(3, &[0x03]);
        port.write(1, &[0x05]);
        port.write(7, &[0x5a]);
        port.enqueue(b"ab");
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let state = port.state();
        let mut again = SerialPort::restore(IrqLine::Event(event()), event(), &state).unwrap();
        assert_eq!(again.state(), state);
        assert_eq!(again.room(), 62);
        let mut byte = [0];
        again.read(7, &mut byte);
        assert_eq!(byte, [0x5a]);
        again.read(0, &mut byte);
        assert_eq!(byte, *b"a");
        let full = SerialState {
            received: vec![0; 65],
            ..state
        };
        assert!(SerialPort::restore(IrqLine::Event(event()), event(), &full).is_err());
    }

    #[test]
    fn the_guest_reads_what_was_enqueued() {
        let (mut port, drained) = port();
        port.write(1, &[0x05]);
        drained.read().unwrap();
        assert_eq!(port.enqueue(b"ab"), 2);
        let mut byte = [0];
        port.read(5, &mut byte);
        assert_eq!(byte[0] & 1, 1);
        port.read(0, &mut byte);
        assert_eq!(byte, *b"a");
        assert!(drained.read().is_err());
        port.read(0, &mut byte);
        assert_eq!(byte, *b"b");
        assert!(drained.read().is_ok());
    }
}

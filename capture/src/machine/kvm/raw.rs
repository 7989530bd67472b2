//! What safe Rust has no way to ask of KVM: which memory the guest has, how its TSC is shifted,
//! and what a union in `struct kvm_run` says.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// A virtual machine and the memory that it maps, which must not go before it: fields are dropped
/// in this order.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) fd: VmFd,
    pub(super) memory: GuestMemoryMmap,
}

impl Vm {
    /// A machine with this memory and nothing else.
    pub(super) fn new(kvm: &Kvm, memory: GuestMemoryMmap) -> Result<Self, Error> {
        let vm = Self {
            fd: kvm.create_vm()?,
            memory,
        };
        for (slot, region) in (0..).zip(vm.memory.iter()) {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| Error::new(libc::EFAULT))?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: u64::try_from(host.expose_provenance()).unwrap_or(0),
            };
            // SAFETY: the range is a mapping of `vm.memory`, which `Vm` keeps for longer than the
            // machine, and `Vcpu` keeps `Vm`.
            unsafe { vm.fd.set_user_memory_region(region) }?;
        }
        Ok(vm)
    }
}

/// A vCPU and the machine that it belongs to; in this order, as above.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) vm: Arc<Vm>,
}

impl Vcpu {
    pub(super) fn new(vm: &Arc<Vm>, number: u32) -> Result<Self, Error> {
        Ok(Self {
            fd: vm.fd.create_vcpu(u64::from(number))?,
            vm: Arc::clone(vm),
        })
    }

    /// What KVM says of its own failure (`KVM_EXIT_INTERNAL_ERROR`): the kind of it, and its data.
    pub(super) fn internal_error(&mut self) -> (u32, Vec<u64>) {
        let run = self.fd.get_kvm_run();
        // SAFETY: every member of the union is made of integers, which any bytes are.
        let error = unsafe { run.__bindgen_anon_1.internal };
        let count = usize::try_from(error.ndata).unwrap_or(0);
        (error.suberror, error.data.into_iter().take(count).collect())
    }

    /// What is added to the host's TSC to make the guest's (`KVM_VCPU_TSC_OFFSET`); `None` where
    /// the host's kernel has no such thing (before 5.16).
    pub(super) fn tsc_offset(&self) -> Option<u64> {
        let mut offset = 0u64;
        let attribute = offset_attribute(&raw mut offset);
        // SAFETY: the kernel writes eight bytes to where `addr` points, which is `offset`.
        let done = unsafe { ioctl_with_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &attribute) };
        (done == 0).then_some(offset)
    }

    /// Sets it.
    pub(super) fn set_tsc_offset(&self, mut offset: u64) -> Result<(), Error> {
        let attribute = offset_attribute(&raw mut offset);
        // SAFETY: the kernel reads eight bytes from where `addr` points, which is `offset`.
        let done = unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) };
        if done == 0 {
            Ok(())
        } else {
            Err(Error::last())
        }
    }
}

fn offset_attribute(at: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: u64::try_from(at.expose_provenance()).unwrap_or(0),
    }
}

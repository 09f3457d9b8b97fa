"""Devices as data, and what is assumed about how much of them a run can use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator and its place in a cluster. Rates are per device and second, memory in bytes; all of them peaks.

    Attributes:
        bf16, fp32: dense matrix FLOPs (no structured sparsity); fp32 without TF32, which torch leaves off.
        memory: capacity.
        bandwidth: bytes between memory and chip.
        link: bytes one way between devices of a node.
        network: bytes one way between nodes, each device's share of the node's network cards.
        node: devices of a node.
    """

    bf16: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    network: float
    node: int = 8

    def peak(self, dtype: str) -> float:
        """Matrix FLOPs a second in ``dtype``, "bf16" or "fp32"."""
        return self.bf16 if dtype == "bf16" else self.fp32


# Sources: NVIDIA's data sheets of the SXM parts. Their bf16 figures "with sparsity" are halved; NVLink's are both ways, halved.
# The network is an assumption: what the maker's reference nodes have, one card a GPU (400 Gbit/s = 50 GB/s; A100: 200 Gbit/s).
DEVICES: dict[str, Device] = {
    "h100": Device(989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9),  # H100 SXM5 80 GB, NVLink 4 (900 GB/s both ways)
    "h200": Device(989e12, 67e12, 141e9, 4.8e12, 450e9, 50e9),  # H200 SXM: H100's chip, HBM3e
    "a100": Device(312e12, 19.5e12, 80e9, 2.039e12, 300e9, 25e9),  # A100 SXM4 80 GB, NVLink 3 (600 GB/s both ways)
    "b200": Device(2250e12, 80e12, 180e9, 8e12, 900e9, 50e9),  # HGX B200, NVLink 5 (1.8 TB/s both ways); 180 GB usable
    # RTX 4090: 165 TFLOPs in bf16 with fp32 sums (Ada whitepaper), no NVLink: PCIe 4 x16 through the host; 100 Gbit/s a node.
    "4090": Device(165e12, 82.6e12, 24e9, 1.008e12, 25e9, 1.5e9),
    # One core of a server CPU with AVX-512, and memory of a small machine: orders of magnitude, bf16 is emulated.
    "cpu": Device(0.025e12, 0.1e12, 8e9, 10e9, 5e9, 1e9, node=1),
}


def device(name: str) -> Device:
    """The device called ``name``.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DEVICES:
        raise ValueError(f"device {name!r} is not known; known are {', '.join(DEVICES)}")
    return DEVICES[name]


@dataclass(frozen=True)
class Assumptions:
    """Efficiencies and latencies that no data sheet gives. They are not measured on GPUs; every output repeats them.

    Attributes:
        compute: share of peak FLOPs that large matrix products reach.
        bandwidth: share of peak memory bandwidth that the other operations reach; each reads and writes all of its operands.
        link: share of peak link bandwidth that large collectives reach.
        overlap: share of the computation, while communication can run, that it hides behind.
        memory: share of the device's memory that tensors may fill; the rest is the context, libraries and fragmentation.
        hop, far_hop: seconds that a ring's step takes inside a node and between nodes, however small the message.
    """

    compute: float = 0.6
    bandwidth: float = 0.8
    link: float = 0.8
    overlap: float = 0.8
    memory: float = 0.92
    hop: float = 1e-6
    far_hop: float = 5e-6


@dataclass(frozen=True)
class Hardware:
    """The kind of device that a run is planned on, in what type it multiplies, and how much of it a run can use.

    Attributes:
        device: its data sheet.
        dtype: of matrix products, "bf16" or "fp32".
        assume: efficiencies and latencies.
    """

    device: Device
    dtype: str = "bf16"
    assume: Assumptions = Assumptions()

    @property
    def flops(self) -> float:
        """FLOPs per second that large matrix products reach."""
        return self.assume.compute * self.device.peak(self.dtype)

    @property
    def bandwidth(self) -> float:
        """Bytes per second that other operations move between memory and chip."""
        return self.assume.bandwidth * self.device.bandwidth

    @property
    def memory(self) -> float:
        """Bytes of a device that tensors may fill."""
        return self.assume.memory * self.device.memory

    def link(self, gpus: int) -> float:
        """Bytes per second that each of ``gpus`` devices sends in a ring, which crosses a node's border once over all its cards."""
        device = self.device
        between = device.network * device.node
        return self.assume.link * (device.link if gpus <= device.node else min(device.link, between))

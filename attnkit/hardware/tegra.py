"""The GPU inside an NVIDIA Tegra (Jetson, Drive): no PCI function shows it, the device tree does."""

from __future__ import annotations

from attnkit.hardware.device import NO_DEVICE_NODE, Device
from attnkit.hardware.ids import UNKNOWN_ARCH
from attnkit.hardware.tree import Tree, parse_int

# Chip, as the device tree's "compatible" spells it, to its GPU's architecture; `soc_id` of sysfs is the chip's number.
_CHIPS = {
    "tegra124": ("sm_32", "NVIDIA Tegra K1", 0x40),
    "tegra210": ("sm_53", "NVIDIA Jetson Nano / TX1", 0x21),
    "tegra186": ("sm_62", "NVIDIA Jetson TX2", 0x18),
    "tegra194": ("sm_72", "NVIDIA Jetson Xavier", 0x19),
    "tegra234": ("sm_87", "NVIDIA Jetson Orin", 0x23),
    "tegra264": ("sm_110", "NVIDIA Jetson Thor", 0x26),
}
ARCHS = frozenset(arch for arch, _, _ in _CHIPS.values())
_NODES = ("dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/nvgpu", "dev/nvidia0", "dev/nvmap")
_DEVICE_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")


def probe_tegra(tree: Tree, notes: list[str]) -> tuple[Device, ...]:
    """The GPU of a Tegra, or nothing on another machine."""
    compatible = next((text for base in _DEVICE_TREES if (text := tree.text(f"{base}/compatible"))), "")
    parts = compatible.replace(",", " ").split("\x00")
    words = {word for part in parts for word in part.split()}
    chip = next((name for name in _CHIPS if name in words), None)
    if chip is None and (tree.text("sys/devices/soc0/family") or "").casefold() == "tegra":
        number = parse_int(tree.text("sys/devices/soc0/soc_id"))
        chip = next((name for name, (_, _, soc) in _CHIPS.items() if soc == number), None)
    tegra = chip is not None or any(word.startswith("tegra") for word in words) or tree.exists("etc/nv_tegra_release")
    if not tegra and not any(tree.exists(node) for node in _NODES[:3]):
        return ()
    arch, name = _CHIPS[chip][:2] if chip else (UNKNOWN_ARCH, "NVIDIA Tegra GPU")
    if chip is None:
        notes.append(
            "an NVIDIA Tegra GPU of unknown generation is here (nvhost device nodes or a device tree that names no chip)"
        )
    model = next((text for base in _DEVICE_TREES if (text := tree.text(f"{base}/model"))), None)
    missing = tree.exists("dev") and not any(tree.exists(node) for node in _NODES)
    problem = (
        f"{name}: the chip is there, but no /dev/nvhost-gpu: the GPU is not passed into this container" if missing else None
    )
    release = (tree.text("etc/nv_tegra_release") or "").lstrip("# ").partition(",")[0]
    return (
        Device(
            vendor="nvidia",
            kind="gpu",
            name=model if model and model.startswith("NVIDIA") else name,
            arch=arch,
            # The GPU uses main memory.
            memory_bytes=(parse_int(tree.fields("proc/meminfo", ":").get("MemTotal")) or 0) * 1024 or None,
            features=("shared-memory", *((NO_DEVICE_NODE,) if missing else ())),
            driver=f"L4T {release}" if release else "nvgpu",
            source="devicetree",
            problem=problem,
        ),
    )

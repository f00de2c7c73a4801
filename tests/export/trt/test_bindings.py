"""Every name and argument of TensorRT's that this project uses, against the compiled packages themselves.

They carry no type information, but each function's docstring holds its C++ signature. TensorRT-RTX is imported as
it is. Native TensorRT's bindings (package tensorrt-cu13-bindings, without NVIDIA's libraries) need nine functions
from libraries that are not here; the test compiles empty ones, so that the bindings load and can be read.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentwire.engines.trt_api import CLASSES, ENUMS, RTX_ONLY, TensorRt

pytestmark = pytest.mark.trt

LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
MISSING = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
READ = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
asked = json.loads(sys.argv[2])
found = {"version": module.__version__, "module": [n for n in asked["module"] if hasattr(module, n)]}
found["classes"] = {
    c: {n: getattr(getattr(module, c), n).__doc__ or "" for n in names if hasattr(getattr(module, c, None), n)}
    for c, names in asked["classes"].items()
}
found["enums"] = {e: sorted(getattr(getattr(module, e, None), "__members__", {})) for e in asked["enums"]}
print(json.dumps(found))
"""


def used() -> dict[str, Any]:
    """Names by class: protocol members that are not inherited from ``Protocol``."""
    classes = {c: sorted(members(p)) for c, p in CLASSES.items()}
    return {"module": sorted(members(TensorRt)), "classes": classes, "enums": sorted(ENUMS)}


def members(protocol: type) -> set[str]:
    own = [c for c in protocol.__mro__ if c.__module__ == protocol.__module__]
    names = {n for c in own for n in (*vars(c), *vars(c).get("__annotations__", {}))}
    return {n for n in names if not n.startswith("_")} | (names & {"__version__", "__buffer__"})


def read(module: str, env: dict[str, str]) -> dict[str, Any]:
    """What the module has of ``used``, from a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", READ, module, json.dumps(used())],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def differences(found: dict[str, Any], *, native: bool) -> list[str]:
    """Names that are missing, and calls whose arguments are named or counted otherwise."""
    wanted, wrong = used(), []
    wrong += [f"module has no {n}" for n in wanted["module"] if n not in found["module"]]
    for c, names in wanted["classes"].items():
        for name in names:
            if native and (c, name) in RTX_ONLY:
                continue
            doc = found["classes"][c].get(name)
            if doc is None and name != "__buffer__":  # Python shows a C buffer under this name from 3.12 on
                wrong.append(f"{c} has no {name}")
            elif doc is not None:
                wrong += [f"{c}.{name}: {text}" for text in arguments(getattr(CLASSES[c], name, None), name, doc)]
    for enum, names in ENUMS.items():
        wrong += [f"{enum} has no {n}" for n in names if n not in found["enums"][enum]]
    return wrong


def arguments(ours: Any, name: str, doc: str) -> list[str]:
    """Compare the argument names of a method with those in the docstring; any overload will do."""
    if not inspect.isfunction(ours) or name.startswith("__"):
        return []
    want = [p for p in inspect.signature(ours).parameters if p != "self"]
    overloads = [
        [a.split(":")[0].strip() for a in split(text)][1:]
        for text in re.findall(rf"{name}\((self: .*?)\) ->", doc, flags=re.DOTALL)
    ]
    return [] if not overloads or want in overloads else [f"expected {want}, it has {overloads}"]


def split(text: str) -> list[str]:
    """Arguments at commas that no bracket encloses."""
    found, depth = [""], 0
    for c in text:
        depth += (c in "[(<") - (c in "])>")
        if c == "," and not depth:
            found.append("")
        else:
            found[-1] += c
    return found


def test_rtx_has_all_names() -> None:
    module = next(n for n in ("tensorrt_rtx", "tensorrt_rtx_bindings") if importlib.util.find_spec(n))
    assert differences(read(module, {}), native=False) == []


def test_native_has_all_names(tmp_path: Path) -> None:
    spec, compiler = importlib.util.find_spec("tensorrt_bindings"), shutil.which("cc")
    if spec is None:
        pytest.skip("package tensorrt-cu13-bindings is not installed")
    if compiler is None:
        pytest.skip("no C compiler to make empty libraries with")
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in MISSING), encoding="utf-8")
    for name in LIBRARIES:
        file = f"{name}.so.11"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(tmp_path / file), str(source)]
        subprocess.run(command, check=True, timeout=60)
    found = read("tensorrt_bindings", {"LD_LIBRARY_PATH": str(tmp_path)})
    print(f"tensorrt bindings {found['version']}")
    assert int(found["version"].split(".")[0]) >= 11
    assert differences(found, native=True) == []


def test_a_renamed_argument_would_be_seen() -> None:
    module = next(n for n in ("tensorrt_rtx", "tensorrt_rtx_bindings") if importlib.util.find_spec(n))
    found = read(module, {})
    doc = found["classes"]["IExecutionContext"]["set_tensor_address"]
    found["classes"]["IExecutionContext"]["set_tensor_address"] = doc.replace("memory:", "pointer:")
    del found["classes"]["ICudaEngine"]["get_aliased_input_tensor"]
    assert differences(found, native=False) == [
        "IExecutionContext.set_tensor_address: expected ['name', 'memory'], it has [['name', 'pointer']]",
        "ICudaEngine has no get_aliased_input_tensor",
    ]

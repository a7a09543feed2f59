"""Checks of the installation."""

import importlib
import importlib.util
import os
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Found

HF_LIBERO = "0.1.4"
"""Pinned in the installation rather than in the package's metadata, as it is installed without its requirements."""


@partial(Check, "versions")
def check_versions(context: DoctorContext) -> Found:
    """Installed packages against the pins of this package's metadata."""
    from packaging.requirements import Requirement

    right, wrong, absent = 0, list[str](), list[str]()
    pins = [*(requires("sb3-tgrpo") or []), f"hf-libero=={HF_LIBERO}; extra == 'libero'"]
    for text in dict.fromkeys(pins):
        requirement = Requirement(text)
        if requirement.extras or requirement.name == "sb3-tgrpo" or not str(requirement.specifier):
            continue
        marker = str(requirement.marker or "")
        if any(f'"{extra}"' in marker for extra in ("dev", "docs", "all", "extra")):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            (absent if marker else wrong).append(f"{requirement.name} is not installed")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            right += 1
        else:
            wrong.append(f"{requirement.name} {installed}, needed {requirement.specifier}")
    if wrong:
        return "failed", "; ".join(wrong), 'pip install -c constraints.txt "sb3-tgrpo[all]"'
    found = f"{right} packages within their pins" + (f"; {'; '.join(absent)}" if absent else "")
    return "note" if absent else "ok", found, "Install the extras that you need." if absent else ""


@partial(Check, "MuJoCo")
def check_mujoco(context: DoctorContext) -> Found:
    """The version that LIBERO's pictures and dynamics were recorded with."""
    from sb3_tgrpo.envs.libero.gl import choose_gl

    choose_gl()  # before MuJoCo is imported
    import mujoco

    pinned = _pinned("mujoco")
    remedy = f"pip install mujoco=={pinned}: other versions draw LIBERO's scenes darker, which a policy has never seen."
    if mujoco.__version__ != pinned:
        return "failed", f"{mujoco.__version__}, LIBERO's results are of {pinned}", remedy
    return "ok", mujoco.__version__, ""


def _pinned(package: str) -> str:
    """Exact version in this package's metadata."""
    for text in requires("sb3-tgrpo") or []:
        if text.startswith(f"{package}=="):
            return text.removeprefix(f"{package}==").split(";")[0].strip()
    raise LookupError(f"sb3-tgrpo's metadata do not pin {package}: install it again (pip install -e .).")


@partial(Check, "OpenGL")
def check_gl(context: DoctorContext) -> Found:
    """The OpenGL backend."""
    from sb3_tgrpo.envs.libero.gl import MISSING_GL, check_gl_variables, choose_gl

    named = os.environ.get("MUJOCO_GL")
    try:
        backend = choose_gl()
        check_gl_variables(backend)
    except RuntimeError as error:  # its text has the remedy: packages, or a variable's valid values
        missing = str(error) == MISSING_GL
        return "failed", "no OpenGL library" if missing else str(error), MISSING_GL if missing else "Set it so, or unset it."
    how = "by MUJOCO_GL" if named else "chosen"
    return "ok", f"{backend or 'of the system'} ({how})", ""


@partial(Check, "torchvision, timm")
def check_torchvision(context: DoctorContext) -> Found:
    """A torchvision built for another torch makes transformers fail or fall back silently."""
    present = [package for package in ("torchvision", "timm") if importlib.util.find_spec(package) is not None]
    if not present:
        return "ok", "not installed, not needed", ""
    try:
        for package in present:
            importlib.import_module(package)
    except Exception as error:  # an operator missing from a mismatched build, for instance
        return "failed", f"{package} does not import beside this torch ({error})", f"pip uninstall {' '.join(present)}"
    found = ", ".join(f"{package} {version(package)}" for package in present)
    return "note", f"{found}: installed, not used here", ""


@partial(Check, "API key")
def check_api_key(context: DoctorContext) -> Found:
    """Whether rewards can be written by a language model; the key itself is never shown."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        return "ok", "ANTHROPIC_API_KEY is set", ""
    remedy = "Only `sb3-tgrpo reward generate` needs it: export ANTHROPIC_API_KEY=..."
    return "note", "ANTHROPIC_API_KEY is not set", remedy


INSTALLATION_CHECKS = (check_versions, check_gl, check_mujoco, check_torchvision, check_api_key)

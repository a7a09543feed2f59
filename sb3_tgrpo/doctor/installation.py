"""Checks of the installation."""

import importlib
import importlib.util
import os
from importlib.metadata import PackageNotFoundError, requires, version

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Finding

HF_LIBERO = "0.1.4"
"""Pinned in the installation rather than in the package's metadata, as it is installed without its requirements."""


def check_versions(context: DoctorContext) -> Finding:
    """Installed packages against the pins of this package's metadata."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    right: list[str] = []
    absent: list[str] = []
    pins = [*(requires("sb3-tgrpo") or []), f"hf-libero=={HF_LIBERO}; extra == 'libero'"]
    for text in dict.fromkeys(pins):
        requirement = Requirement(text)
        if requirement.extras or requirement.name == "sb3-tgrpo" or not str(requirement.specifier):
            continue
        marker = str(requirement.marker or "")
        if any(extra in marker for extra in ('"dev"', '"all"', '"extra"')):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            (absent if marker else wrong).append(f"{requirement.name} is not installed")
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        (right if fits else wrong).append(
            f"{requirement.name} {installed}" + ("" if fits else f", needed {requirement.specifier}")
        )
    if wrong:
        return Finding("versions", "failed", "; ".join(wrong), 'pip install -c constraints.txt "sb3-tgrpo[all]"')
    found = f"{len(right)} packages within their pins" + (f"; {'; '.join(absent)}" if absent else "")
    return Finding("versions", "note" if absent else "ok", found, "Install the extras that you need." if absent else "")


def check_mujoco(context: DoctorContext) -> Finding:
    """The version that LIBERO's pictures and dynamics were recorded with."""
    from sb3_tgrpo.envs.libero.gl import choose_gl

    choose_gl()  # before MuJoCo is imported
    import mujoco

    pinned = _pinned("mujoco")
    remedy = f"pip install mujoco=={pinned}: other versions draw LIBERO's scenes darker, which a policy has never seen."
    if mujoco.__version__ != pinned:
        return Finding("MuJoCo", "failed", f"{mujoco.__version__}, LIBERO's results are of {pinned}", remedy)
    return Finding("MuJoCo", "ok", mujoco.__version__)


def _pinned(package: str) -> str:
    """Exact version in this package's metadata."""
    for text in requires("sb3-tgrpo") or []:
        if text.startswith(f"{package}=="):
            return text.removeprefix(f"{package}==").split(";")[0].strip()
    raise LookupError(f"sb3-tgrpo's metadata do not pin {package}: install it again (pip install -e .).")


def check_gl(context: DoctorContext) -> Finding:
    """The OpenGL backend."""
    from sb3_tgrpo.envs.libero.gl import MISSING_GL, choose_gl

    named = os.environ.get("MUJOCO_GL")
    try:
        backend = choose_gl()
    except RuntimeError as error:
        return Finding("OpenGL", "failed", str(error), MISSING_GL)
    how = "by MUJOCO_GL" if named else "chosen"
    return Finding("OpenGL", "ok", f"{backend or 'of the system'} ({how})")


def check_torchvision(context: DoctorContext) -> Finding:
    """A torchvision built for another torch makes transformers fail or fall back silently."""
    name = "torchvision, timm"
    present = [package for package in ("torchvision", "timm") if importlib.util.find_spec(package) is not None]
    if not present:
        return Finding(name, "ok", "not installed, not needed")
    try:
        for package in present:
            importlib.import_module(package)
    except Exception as error:  # an operator missing from a mismatched build, for instance
        return Finding(
            name, "failed", f"{package} does not import beside this torch ({error})", f"pip uninstall {' '.join(present)}"
        )
    found = ", ".join(f"{package} {version(package)}" for package in present)
    return Finding(name, "note", f"{found}: installed, not used here")


def check_api_key(context: DoctorContext) -> Finding:
    """Whether rewards can be written by a language model; the key itself is never shown."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        return Finding("API key", "ok", "ANTHROPIC_API_KEY is set")
    remedy = "Only `sb3-tgrpo reward generate` needs it: export ANTHROPIC_API_KEY=..."
    return Finding("API key", "note", "ANTHROPIC_API_KEY is not set", remedy)


INSTALLATION_CHECKS: tuple[tuple[str, Check], ...] = (
    ("versions", check_versions),
    ("OpenGL", check_gl),
    ("MuJoCo", check_mujoco),
    ("torchvision, timm", check_torchvision),
    ("API key", check_api_key),
)

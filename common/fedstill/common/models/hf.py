"""Encoders in a local folder of Hugging Face's format, with the weights that lie there: hf-PATH.

The folder has a config.json and .safetensors files, as `save_pretrained` writes them. Nothing is fetched, no code of
the folder is run, and no pickle is read. The task's `tokenizer` has to be the folder's tokenizer.json.

Wolf et al. 2020, https://arxiv.org/abs/1910.03771.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedstill.common.errors import DataError, UnsupportedError
from fedstill.common.models._heads import TEXT_OUTPUTS, text_head
from fedstill.common.network import Network, mean_state
from fedstill.common.task import TaskSpec

_DROPOUT = 0.1


class HuggingFace:
    """The pretrained encoder of a local folder in Hugging Face's format."""

    name: ClassVar[str] = "hf"
    paper: ClassVar[str] = "Wolf et al. 2020, https://arxiv.org/abs/1910.03771"
    modalities: ClassVar[frozenset[str]] = frozenset({"text"})
    outputs: ClassVar[frozenset[str]] = TEXT_OUTPUTS
    sizes: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def build(self, size: str, spec: TaskSpec) -> Network:
        """The folder's encoder with a new head; `size` is the folder's path.

        Raises:
            DataError: if there is no such folder, or no model in it that can be read.
            UnsupportedError: if its tokens or positions do not suffice for the task.
        """
        encoder = _Encoder(_read(Path(size)))
        encoder.check(size, spec)
        return Network(encoder, text_head(spec, encoder.width, pool=mean_state, dropout=_DROPOUT))


class _Encoder(nn.Module):
    """Token ids (…, L), 0 for padding and else 1 more than the model's own, to states (…, L, D), zero at padding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.padding = model.config.pad_token_id or 0

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        flat = tokens.flatten(0, -2)
        there = flat != 0
        # A text of nothing but padding attends to its first place, for attention to nothing is NaN.
        seen = there.clone()
        seen[:, 0] = True
        ids = torch.where(there, flat - 1, self.padding)
        states: Tensor = self.model(input_ids=ids, attention_mask=seen.long()).last_hidden_state
        return (states * there.unsqueeze(-1)).reshape(*tokens.shape, -1)

    def check(self, path: str, spec: TaskSpec) -> None:
        """Refuse a model with a decoder, and a task with other tokens or longer texts than the model knows."""
        config = self.model.config
        if config.is_encoder_decoder:
            raise UnsupportedError(f"model 'hf-{path}'", "expected an encoder alone", "such as one of the BERT family")
        if not spec.tokenizer or spec.vocabulary > config.vocab_size + 1:
            raise UnsupportedError(
                f"model 'hf-{path}' for task '{spec.name}' with "
                + (f"{spec.vocabulary - 1} tokens" if spec.tokenizer else "hashed words"),
                f"expected the {config.vocab_size} tokens that the model was trained with",
                "set the task's 'tokenizer' to the tokenizer.json of the folder",
            )
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and spec.input_shape[-1] > longest:
            raise UnsupportedError(
                f"model 'hf-{path}' for task '{spec.name}' with texts of {spec.input_shape[-1]} tokens",
                f"expected at most {longest}",
                "lower the task's 'length'",
            )


def _read(folder: Path) -> Any:
    """The folder's model in float32; without its weights where torch makes none (the device "meta")."""
    if not (folder / "config.json").is_file():
        raise DataError(
            f"model 'hf-{folder}'", f"expected {folder / 'config.json'}", "name a folder that save_pretrained wrote"
        )
    transformers = _library(folder)
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        if torch.get_default_device().type == "meta":
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            return transformers.AutoModel.from_config(config, trust_remote_code=False)
        model, told = transformers.AutoModel.from_pretrained(
            folder, **options, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise DataError(f"model 'hf-{folder}'", f"cannot be read: {error}", "save it again as safetensors") from None
    # A pooler answers a task of pretraining, and is not used.
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise DataError(
            f"model 'hf-{folder}' without {len(missing)} of its weights ({missing[0]} …)",
            "expected all that its config.json names",
            "save model and configuration together",
        )
    return model


def _library(folder: Path) -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise DataError(
            f"model 'hf-{folder}'", "expected the package 'transformers'", "pip install 'fedstill[hf]'"
        ) from None
    return transformers

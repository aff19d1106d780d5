"""A model as a diffusers pipeline: its components, loading and saving, prompts and LoRAs; a call is in `base`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.loaders import LTXVideoLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from vgen.engine.lossy.quantize import refuse_quantized
from vgen.engine.session import Placement
from vgen.errors import RequestError
from vgen.hub.find import resolve_model
from vgen.io.files import follow_umask
from vgen.io.weights.lora_file import WEIGHT_NAME
from vgen.io.weights.weight_files import forget_broken_indices, forget_weights
from vgen.models import CausalVideoVAE, VideoDiT
from vgen.pipelines.call.conventions import Convention, convention_named, from_model_index
from vgen.pipelines.loading.component_checks import check_component
from vgen.pipelines.loading.load import TEXT, TextSource, load_folder, read_file
from vgen.pipelines.loading.lora import LoadedLora, Loras
from vgen.pipelines.text.cache import DeferredText, TextCache
from vgen.pipelines.text.encoder import (
    PreTrainedTokenizerBase,
    T5EncoderModel,
    TextEmbeddings,
    encode_texts,
    quietly,
)
from vgen.pipelines.text.prompts import embed_prompts


class ModelPipeline(DiffusionPipeline, LTXVideoLoraLoaderMixin):
    """The components of a model under the names that diffusers' users know; the work is done next to this file.

    Of LoRAs `set_adapters`, `delete_adapters` and what else is not here are diffusers' own.

    Args:
        scheduler: does the stepping.
        vae: pixels <-> latents.
        text_encoder: prompts to embeddings.
        tokenizer: of the text encoder.
        transformer: predicts velocities.
        convention: numerical conventions of the model, see vgen.pipelines.call.conventions.
        defaults: the model's own values for what a caller leaves out (height, width, num_frames, frame_rate,
            num_inference_steps, guidance_scale, negative_prompt ...); saved in model_index.json.
        trained: what the model states about its training, see vgen.request.trained; saved in model_index.json.
        deferred_text: encodes prompts where text encoder and tokenizer are None.
    """

    scheduler: FlowMatchEulerDiscreteScheduler
    vae: CausalVideoVAE
    text_encoder: T5EncoderModel | None
    tokenizer: PreTrainedTokenizerBase
    transformer: VideoDiT
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = []
    placement: Placement | None = None
    """Where set, not all models lie on the device, see `vgen.pipelines.loading.placement.place_models`."""
    _conditions_anywhere: ClassVar[bool] = False
    """Whether the task takes conditions at any frame; picks the convention of such tasks."""

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: CausalVideoVAE,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        transformer: VideoDiT,
        convention: str = "vgen",
        defaults: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
        deferred_text: DeferredText | None = None,
    ) -> None:
        super().__init__()
        convention_named(convention)
        self.deferred_text = deferred_text
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        self.register_to_config(convention=convention, defaults=dict(defaults or {}), trained=trained)
        self.video_processor = VideoProcessor(vae_scale_factor=vae.strides.height)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a component that cannot be used is refused, see `check_component`."""
        if name in ("scheduler", "transformer", "vae"):
            check_component(name, value)
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        text_encoder_folder: str | os.PathLike[str] | None = None,
        upcast_fp8: bool = False,
        text_cache: TextCache | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline. Every pipeline of this package loads every folder, also diffusers' LTX-Video ones.

        Args:
            pretrained_model_name_or_path: a folder, a single file, or a name that `vgen.hub.find.resolve_model` knows.
            device: where to put the components.
            text_encoder_folder: a folder or cached hub repository with text_encoder/ and tokenizer/, for models that
                come without; by default see `vgen.hub.find.find_text_encoder`.
            upcast_fp8: widen plain FP8 weights of a single file.
            text_cache: leave the text encoder out; it is loaded for prompts that are not cached, and dropped again.
            **kwargs: as diffusers' own: torch_dtype, variant, device_map, quantization_config, components by name ...
                For a single file those that `from_single_file` takes. Of each component the weights that
                `vgen.io.weights.weight_files.find_weights` names are loaded; safetensors in any case.
        Raises:
            RequestError: `use_safetensors=False`, a variant that cannot be one, or a component that cannot be used.
            CheckpointError: an unknown name, or a folder or file that is incomplete or damaged.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise RequestError("use_safetensors=False would run what a pickle says; only safetensors are loaded.")
        place = resolve_model(pretrained_model_name_or_path, upcast_fp8=upcast_fp8, variant=kwargs.get("variant"))
        if "torch_dtype" in kwargs:  # the name that most people know; diffusers' own is now `dtype`
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if place.is_file():
            return cls.from_single_file(
                place, device=device, text_encoder_folder=text_encoder_folder, upcast_fp8=upcast_fp8,
                text_cache=text_cache, **kwargs
            )  # fmt: skip
        name, text = os.fspath(pretrained_model_name_or_path), TextSource(text_encoder_folder, text_cache)
        pipeline = load_folder(super().from_pretrained, place, name, text, kwargs)
        return pipeline.to(device) if device is not None else pipeline

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        text_encoder_folder: str | os.PathLike[str] | None = None,
        upcast_fp8: bool = False,
        version: str | None = None,
        text_cache: TextCache | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a single safetensors file in the original layout of LTX-Video.

        Args:
            path: the file.
            device: where the tensors go, straight from the file; default the CPU.
            dtype: of all; by default transformer and VAE are float32, as from a folder, the text encoder is as stored.
            text_encoder_folder: see `from_pretrained`.
            upcast_fp8: widen plain FP8 weights, see `SingleFile.check_precision`.
            version: name in `vgen.hub.catalog`, for a file that goes by another name; says only what the defaults are.
            text_cache: see `from_pretrained`.
            **kwargs: components by name, used as they are; `convention`, `defaults` and `trained`.
        Raises:
            CheckpointError: the file is damaged, incomplete or of another kind; or no text encoder is there.
            RequestError: an argument that a single file cannot take.
        """
        text = TextSource(text_encoder_folder, text_cache)
        pipeline: Any = cls(**read_file(Path(path), device, dtype, text, upcast_fp8, version, kwargs))
        pipeline.register_to_config(_name_or_path=str(path))
        return pipeline.to(device) if device is not None else pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline of this task with another's models, which both then share.

        diffusers' own casts them to float32 where no dtype is given; here they stay as they are.

        Args:
            pipeline: of this package, or diffusers' LTX one with models of this package.
            **kwargs: components by name, `convention` and `defaults`, in place of the pipeline's; and torch_dtype.
        Raises:
            RequestError: the pipeline has not all of the models.
        """
        given = {name: kwargs.pop(name, None) for name in ("torch_dtype", "dtype")}
        components = {**from_model_index({"_class_name": type(pipeline).__name__}), **pipeline.components, **kwargs}
        del components["_class_name"]
        missing = {"scheduler", "vae", "transformer", *TEXT} - components.keys()
        if missing:
            raise RequestError(
                f"{type(pipeline).__name__} has no {', '.join(sorted(missing))}: pass what is missing by name, or load "
                f"{cls.__name__}.from_pretrained(...)."
            )
        shared: Any = cls(**components)
        shared.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        dtype = given["dtype"] or given["torch_dtype"]
        return shared if dtype is None else shared.to(dtype=dtype)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read model_index.json, with diffusers' LTX classes translated to ours."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        return (from_model_index(config[0]), *config[1:]) if isinstance(config, tuple) else from_model_index(config)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the whole pipeline, also a text encoder that is not loaded.

        As diffusers' own (`variant="fp16"`, `max_shard_size` ...), but nothing of an earlier save of the same variant
        is left behind.
        """
        deferred, text = self.deferred_text if self.text_encoder is None else None, Path(save_directory, TEXT[0])
        if deferred is not None:
            self.register_modules(**dict(zip(TEXT, deferred.load(), strict=True)))
        try:
            forget_weights(text, kwargs.get("variant"))  # models of ours do so themselves
            with quietly():
                super().save_pretrained(save_directory, *args, **kwargs)
            forget_broken_indices(text)
            follow_umask(Path(save_directory))
        finally:
            if deferred is not None:
                self.register_modules(**dict.fromkeys(TEXT))

    @property
    def components(self) -> dict[str, Any]:
        """All that another pipeline of this package needs to share this one's models: `Other(**this.components)`."""
        shared = {name: self.config.get(name) for name in ("convention", "defaults", "trained")}
        return {**super().components, **shared, "deferred_text": self.deferred_text}

    @property
    def parameters(self) -> dict[str, Any]:
        """Nothing: `components` holds them, so that `Other(**this.components, **this.parameters)` works as well."""
        return {}

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert all models; as diffusers' own, which warns that float16 fails on a CPU: here it runs."""
        kwargs.setdefault("silence_dtype_warnings", True)
        return super().to(*args, **kwargs)

    @property
    def model_convention(self) -> Convention:
        """The convention of the model, see vgen.pipelines.call.conventions."""
        named = convention_named(self.config.convention)
        early = "LTXVideo095DownBlock3D" not in self.vae.config.down_block_types
        return self._stated(named.early_name if named.early_name is not None and early else named.name)

    @property
    def convention(self) -> Convention:
        """The conventions of this task with this model."""
        convention = self.model_convention
        return self._stated(convention.conditions_name) if self._conditions_anywhere else convention

    def _stated(self, name: str) -> Convention:
        """The convention of that name, with what the model's own file says of it."""
        return convention_named(name).stated(self.config.defaults or {})

    @property
    def name_of_model(self) -> str:
        """Name of the folder the pipeline came from, or of its class."""
        path = self.config.get("_name_or_path")
        return Path(path).name if path else type(self).__name__

    @property
    def patch_size(self) -> int:
        """Latents per token along rows and columns."""
        return self.transformer.config.patch_size

    @property
    def _execution_device(self) -> torch.device:
        """Where a call works; diffusers' own where the models lie there."""
        return super()._execution_device if self.placement is None else self.placement.device

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int = 128,
        device: torch.device | None = None,
    ) -> TextEmbeddings:
        """Encode prompts, or take embeddings as they are; one entry per clip.

        Args:
            prompt, negative_prompt: text; the negative one may be one for all, None is "".
            do_classifier_free_guidance: whether the negative prompt is needed.
            num_videos_per_prompt: entries for each prompt.
            prompt_embeds, prompt_attention_mask: in place of `prompt`, [P, L, D] and [P, L].
            negative_prompt_embeds, negative_prompt_attention_mask: in place of `negative_prompt`.
            max_sequence_length: L.
            device: where to encode.
        Returns:
            Embeddings [B, L, D] and masks [B, L].
        Raises:
            RequestError: neither a prompt nor embeddings with their mask, or no text encoder.
        """
        device = device or self._execution_device

        def encode(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
            masked = self.convention.mask_text_encoder
            if self.text_encoder is not None:
                return encode_texts(self.tokenizer, self.text_encoder, texts, length, masked=masked, device=device)
            if self.deferred_text is None:
                raise RequestError("prompt: this pipeline has no text encoder; give prompt_embeds and their masks.")
            return self.deferred_text.encode(texts, length, masked=masked, device=device)

        negative = ("" if negative_prompt is None else negative_prompt) if do_classifier_free_guidance else None
        text = embed_prompts(
            encode, prompt, negative, max_sequence_length,
            prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask,
        )  # fmt: skip
        return text.repeated(num_videos_per_prompt, device)

    @property
    def loras(self) -> Loras:
        """The LoRAs of the transformer, shared with every pipeline that has the same one."""
        return Loras(self.transformer)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        low_cpu_mem_usage: bool = False,
    ) -> LoadedLora:
        """Load a LoRA in addition to those that are there; `set_adapters` says which count, and how much.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder with one, or tensors by key.
            adapter_name: a name of its own, without dots; default default_0 and so on.
            hotswap: put it in the place of the adapter of that name.
            weight_name: of the file in the folder.
            low_cpu_mem_usage: as in diffusers.
        Returns:
            what was loaded, and which keys were left out; those are said in a warning, too.
        Raises:
            CheckpointError: no such file, a pickle, a damaged file, no key that fits, or shapes that do not.
            RequestError: the adapter's name is taken or is not a name.
        """
        return self.loras.load(
            pretrained_model_name_or_path_or_dict, adapter_name, hotswap,
            weight_name=weight_name, low_cpu_mem_usage=low_cpu_mem_usage, pipeline=self,
        )  # fmt: skip

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Add the active adapters to the weights, as diffusers does; the weights themselves are kept on the CPU.

        Args:
            components: ["transformer"], the default.
            **kwargs: as diffusers' own: lora_scale, safe_fusing, adapter_names.
        Raises:
            RequestError: there is no LoRA, or a layer is quantised and cannot be brought back exactly.
        """
        self.loras.keep_unfused()
        super().fuse_lora(components=components or ["transformer"], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Bring back the weights as before `fuse_lora`, bit for bit, also if its adapters were unloaded."""
        refuse_quantized(self.transformer, "unfuse_lora")
        super().unfuse_lora(components=components or ["transformer"], **kwargs)
        self.loras.restore_unfused()

    def save_lora(
        self,
        folder: str | os.PathLike[str],
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
        defaults: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a loaded LoRA in diffusers' layout, with its alphas and ranks.

        diffusers loads the same from a plain LoRA. What else there is (DoRA, LoKr, LoHa, differences) has the names of
        LyCORIS and ComfyUI, and comes back here as it was.

        Args:
            folder: where it goes; made if it is not there.
            adapter_name: which; may be left out if there is only one.
            weight_name: of the file.
            defaults: settings that it was made for, see `lora_defaults`; None keeps those it was loaded with.
        Returns:
            the file.
        Raises:
            RequestError: no such adapter.
        """
        return self.loras.save(folder, adapter_name, weight_name, defaults)

    def lora_defaults(self) -> dict[str, Any]:
        """Settings that the active LoRAs were made for, e.g. the sigmas of a distilled one; they go before the model's.

        Raises:
            RequestError: two of them are for different sigmas.
        """
        return self.loras.defaults(self.get_active_adapters)

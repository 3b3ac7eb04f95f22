"""vistok: visual tokenizers for large language models, native to Hugging Face Transformers.

Importing the package registers its models with the Auto classes of transformers. Everything else is loaded when it is
first asked for.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name → module that defines it.
_PUBLIC = {
    "CutoutLibrary": "trainer.cutouts",
    "DataSource": "trainer.data_sources",
    "FeatureMapper": "modeling.feature_mapper",
    "FeatureMapperConfig": "configuration.configuration_feature_mapper",
    "FeatureDistillationConfig": "trainer.feature_distillation_config",
    "FeatureDistillationTrainer": "trainer.feature_distillation_trainer",
    "EvaVisionConfig": "configuration.configuration_eva",
    "EvaVisionForImageClassification": "modeling.modeling_eva",
    "EvaVisionModel": "modeling.modeling_eva",
    "GVTConfig": "configuration.configuration_gvt",
    "GVTForConditionalGeneration": "modeling.modeling_gvt",
    "GVTModel": "modeling.modeling_gvt",
    "GVTProcessor": "processing.processing_gvt",
    "MLPAdapter": "modeling.mlp_adapter",
    "MLPAdapterConfig": "configuration.configuration_mlp_adapter",
    "ImageCollator": "processing.image_collator",
    "ImageDetokenizer": "modeling.image_detokenizer",
    "ImageDetokenizerConfig": "configuration.configuration_image_detokenizer",
    "MaskDecoder": "modeling.mask_decoder",
    "MaskDecoderConfig": "configuration.configuration_mask_decoder",
    "PerceiverResampler": "modeling.perceiver_resampler",
    "PerceiverResamplerConfig": "configuration.configuration_perceiver_resampler",
    "SeTokConfig": "configuration.configuration_setok",
    "SeTokForPreTraining": "modeling.modeling_setok",
    "SeTokLlavaConfig": "configuration.configuration_setok_llava",
    "SeTokLlavaForConditionalGeneration": "modeling.modeling_setok_llava",
    "SeTokLlavaModel": "modeling.modeling_setok_llava",
    "SeTokTokenizer": "modeling.setok_tokenizer",
    "SeTokTokenizerConfig": "configuration.configuration_setok_tokenizer",
    "SeTokTrainer": "trainer.setok_trainer",
    "SeTokTrainingConfig": "trainer.setok_config",
    "SeTokVisionConfig": "configuration.configuration_setok_vision",
    "SeTokVisionModel": "modeling.modeling_setok_vision",
    "SetokimConfig": "configuration.configuration_setokim",
    "SetokimForConditionalGeneration": "modeling.modeling_setokim",
    "SetokimModel": "modeling.modeling_setokim",
    "SetokimPipeline": "processing.setokim_pipeline",
    "SetokimProcessor": "processing.processing_setokim",
    "SetokimTrainer": "trainer.setokim_trainer",
    "SetokimTrainingConfig": "trainer.setokim_config",
    "VTLMMConfig": "configuration.configuration_vtlmm",
    "VTLMMForCausalLM": "modeling.modeling_vtlmm",
    "VTLMMModel": "modeling.modeling_vtlmm",
    "VTLMMProcessor": "processing.processing_vtlmm",
    "VisionFeatures": "modeling.visual_tokenizer",
    "VisualLanguageCollator": "processing.collator",
    "VisualLanguageConfig": "trainer.visual_language_config",
    "VisualLanguageTrainer": "trainer.visual_language_trainer",
    "VisualModelingConfig": "trainer.visual_modeling_config",
    "VisualModelingTrainer": "trainer.visual_modeling_trainer",
    "VisualTokenizer": "modeling.visual_tokenizer",
    "VisualTokenizerOutput": "modeling.visual_tokenizer",
    "build_questions": "evaluation.gvtbench_builder",
    "cider": "evaluation.cider",
    "cluster_patches": "modeling.patch_clusters",
    "density_peaks": "modeling.density_peaks",
    "feature_distillation_loss": "modeling.losses_distillation",
    "fetch": "modeling.base_weights",
    "language_modeling_loss": "modeling.losses_visual_modeling",
    "load_data_source": "trainer.data_sources",
    "load_image": "processing.images",
    "load_questions": "evaluation.gvtbench_questions",
    "mix_data_sources": "trainer.data_sources",
    "plug_setok": "modeling.modeling_setok_llava",
    "random_student": "modeling.distillation_students",
    "save_trained_weights": "modeling.trained_weights",
    "score_multi_class_identification": "evaluation.gvtbench_scoring",
    "score_object_counting": "evaluation.gvtbench_scoring",
    "visual_modeling_loss": "modeling.losses_visual_modeling",
    "visual_token_loss": "modeling.losses_visual_modeling",
    "vqa_accuracy": "evaluation.vqa_accuracy",
    "wei_student": "modeling.distillation_students",
    "write_scenes": "trainer.scene_set",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


def _publish(published, repo_id: str, **options) -> str:
    """`push_to_hub` of models and processors."""
    from .hub_cards.push_objects import push_object

    return push_object(published, repo_id, **options)


def _save_stub(saved, folder, published: bool = False) -> None:
    """What loads a saved model, config or processor with `trust_remote_code=True`, beside it."""
    from .hub_cards.remote_code import save_stub

    save_stub(saved, folder, published)


def _register_auto_classes() -> None:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForImageTextToText,
        AutoModelForPreTraining,
        AutoProcessor,
        LlavaProcessor,
    )

    # exist_ok: a model that was loaded with code of its own may have made parts of its own known.
    from .configuration.configuration_eva import EvaVisionConfig
    from .configuration.configuration_feature_mapper import FeatureMapperConfig
    from .configuration.configuration_gvt import GVTConfig
    from .configuration.configuration_image_detokenizer import ImageDetokenizerConfig
    from .configuration.configuration_mask_decoder import MaskDecoderConfig
    from .configuration.configuration_mlp_adapter import MLPAdapterConfig
    from .configuration.configuration_perceiver_resampler import PerceiverResamplerConfig
    from .configuration.configuration_setok import SeTokConfig
    from .configuration.configuration_setok_llava import SeTokLlavaConfig
    from .configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
    from .configuration.configuration_setok_vision import SeTokVisionConfig
    from .configuration.configuration_setokim import SetokimConfig
    from .configuration.configuration_vtlmm import VTLMMConfig

    AutoConfig.register("eva_vision", EvaVisionConfig, exist_ok=True)
    AutoConfig.register("perceiver_resampler_vistok", PerceiverResamplerConfig, exist_ok=True)
    AutoConfig.register("mlp_adapter_vistok", MLPAdapterConfig, exist_ok=True)
    AutoConfig.register("setok_feature_mapper", FeatureMapperConfig, exist_ok=True)
    AutoConfig.register("setok_detokenizer", ImageDetokenizerConfig, exist_ok=True)
    AutoConfig.register("setok_mask_decoder", MaskDecoderConfig, exist_ok=True)
    AutoConfig.register("setok_tokenizer", SeTokTokenizerConfig, exist_ok=True)
    AutoConfig.register("setok_vision", SeTokVisionConfig, exist_ok=True)
    AutoConfig.register("setok", SeTokConfig, exist_ok=True)
    AutoConfig.register("setok_llava", SeTokLlavaConfig, exist_ok=True)
    AutoConfig.register("setokim", SetokimConfig, exist_ok=True)
    AutoConfig.register("gvt", GVTConfig, exist_ok=True)
    AutoConfig.register("vtlmm", VTLMMConfig, exist_ok=True)

    from .modeling.feature_mapper import FeatureMapper
    from .modeling.image_detokenizer import ImageDetokenizer
    from .modeling.mask_decoder import MaskDecoder
    from .modeling.mlp_adapter import MLPAdapter
    from .modeling.modeling_eva import EvaVisionForImageClassification, EvaVisionModel
    from .modeling.modeling_gvt import GVTForConditionalGeneration, GVTModel
    from .modeling.modeling_setok import SeTokForPreTraining
    from .modeling.modeling_setok_llava import SeTokLlavaForConditionalGeneration, SeTokLlavaModel
    from .modeling.modeling_setok_vision import SeTokVisionModel
    from .modeling.modeling_setokim import SetokimForConditionalGeneration, SetokimModel
    from .modeling.modeling_vtlmm import VTLMMForCausalLM, VTLMMModel
    from .modeling.perceiver_resampler import PerceiverResampler
    from .modeling.setok_tokenizer import SeTokTokenizer
    from .processing.processing_gvt import GVTProcessor
    from .processing.processing_setokim import SetokimProcessor
    from .processing.processing_vtlmm import VTLMMProcessor

    AutoModel.register(EvaVisionConfig, EvaVisionModel)
    AutoModel.register(PerceiverResamplerConfig, PerceiverResampler)
    AutoModel.register(MLPAdapterConfig, MLPAdapter)
    AutoModel.register(SeTokTokenizerConfig, SeTokTokenizer)
    AutoModel.register(SeTokVisionConfig, SeTokVisionModel)
    AutoModel.register(FeatureMapperConfig, FeatureMapper)
    AutoModel.register(ImageDetokenizerConfig, ImageDetokenizer)
    AutoModel.register(MaskDecoderConfig, MaskDecoder)
    AutoModel.register(SeTokConfig, SeTokForPreTraining)
    AutoModel.register(GVTConfig, GVTModel)
    AutoModel.register(VTLMMConfig, VTLMMModel)
    AutoModelForPreTraining.register(SeTokConfig, SeTokForPreTraining)
    AutoModelForCausalLM.register(VTLMMConfig, VTLMMForCausalLM)
    AutoModelForImageClassification.register(EvaVisionConfig, EvaVisionForImageClassification)
    AutoModelForImageTextToText.register(GVTConfig, GVTForConditionalGeneration)
    AutoModel.register(SetokimConfig, SetokimModel)
    AutoModel.register(SeTokLlavaConfig, SeTokLlavaModel)
    AutoModelForImageTextToText.register(VTLMMConfig, VTLMMForCausalLM)
    AutoModelForImageTextToText.register(SetokimConfig, SetokimForConditionalGeneration)
    AutoModelForImageTextToText.register(SeTokLlavaConfig, SeTokLlavaForConditionalGeneration)
    AutoProcessor.register(GVTConfig, GVTProcessor)
    AutoProcessor.register(VTLMMConfig, VTLMMProcessor)
    AutoProcessor.register(SetokimConfig, SetokimProcessor)
    AutoProcessor.register(SeTokLlavaConfig, LlavaProcessor)

    from .configuration.package_code import keep_code_in_package

    keep_code_in_package(list(locals().values()), _save_stub)

    from .configuration.hub_pushing import publish_with

    publish_with(_publish)


_register_auto_classes()

if TYPE_CHECKING:  # what type checkers and editors see of the lazy names
    from .configuration.configuration_eva import EvaVisionConfig as EvaVisionConfig
    from .configuration.configuration_feature_mapper import FeatureMapperConfig as FeatureMapperConfig
    from .configuration.configuration_gvt import GVTConfig as GVTConfig
    from .configuration.configuration_image_detokenizer import ImageDetokenizerConfig as ImageDetokenizerConfig
    from .configuration.configuration_mask_decoder import MaskDecoderConfig as MaskDecoderConfig
    from .configuration.configuration_mlp_adapter import MLPAdapterConfig as MLPAdapterConfig
    from .configuration.configuration_perceiver_resampler import PerceiverResamplerConfig as PerceiverResamplerConfig
    from .configuration.configuration_setok import SeTokConfig as SeTokConfig
    from .configuration.configuration_setok_llava import SeTokLlavaConfig as SeTokLlavaConfig
    from .configuration.configuration_setok_tokenizer import SeTokTokenizerConfig as SeTokTokenizerConfig
    from .configuration.configuration_setok_vision import SeTokVisionConfig as SeTokVisionConfig
    from .configuration.configuration_setokim import SetokimConfig as SetokimConfig
    from .configuration.configuration_vtlmm import VTLMMConfig as VTLMMConfig
    from .evaluation.cider import cider as cider
    from .evaluation.gvtbench_builder import build_questions as build_questions
    from .evaluation.gvtbench_questions import load_questions as load_questions
    from .evaluation.gvtbench_scoring import score_multi_class_identification as score_multi_class_identification
    from .evaluation.gvtbench_scoring import score_object_counting as score_object_counting
    from .evaluation.vqa_accuracy import vqa_accuracy as vqa_accuracy
    from .modeling.base_weights import fetch as fetch
    from .modeling.density_peaks import density_peaks as density_peaks
    from .modeling.distillation_students import random_student as random_student
    from .modeling.distillation_students import wei_student as wei_student
    from .modeling.feature_mapper import FeatureMapper as FeatureMapper
    from .modeling.image_detokenizer import ImageDetokenizer as ImageDetokenizer
    from .modeling.losses_distillation import feature_distillation_loss as feature_distillation_loss
    from .modeling.losses_visual_modeling import language_modeling_loss as language_modeling_loss
    from .modeling.losses_visual_modeling import visual_modeling_loss as visual_modeling_loss
    from .modeling.losses_visual_modeling import visual_token_loss as visual_token_loss
    from .modeling.mask_decoder import MaskDecoder as MaskDecoder
    from .modeling.mlp_adapter import MLPAdapter as MLPAdapter
    from .modeling.modeling_eva import EvaVisionForImageClassification as EvaVisionForImageClassification
    from .modeling.modeling_eva import EvaVisionModel as EvaVisionModel
    from .modeling.modeling_gvt import GVTForConditionalGeneration as GVTForConditionalGeneration
    from .modeling.modeling_gvt import GVTModel as GVTModel
    from .modeling.modeling_setok import SeTokForPreTraining as SeTokForPreTraining
    from .modeling.modeling_setok_llava import SeTokLlavaForConditionalGeneration as SeTokLlavaForConditionalGeneration
    from .modeling.modeling_setok_llava import SeTokLlavaModel as SeTokLlavaModel
    from .modeling.modeling_setok_llava import plug_setok as plug_setok
    from .modeling.modeling_setok_vision import SeTokVisionModel as SeTokVisionModel
    from .modeling.modeling_setokim import SetokimForConditionalGeneration as SetokimForConditionalGeneration
    from .modeling.modeling_setokim import SetokimModel as SetokimModel
    from .modeling.modeling_vtlmm import VTLMMForCausalLM as VTLMMForCausalLM
    from .modeling.modeling_vtlmm import VTLMMModel as VTLMMModel
    from .modeling.patch_clusters import cluster_patches as cluster_patches
    from .modeling.perceiver_resampler import PerceiverResampler as PerceiverResampler
    from .modeling.setok_tokenizer import SeTokTokenizer as SeTokTokenizer
    from .modeling.trained_weights import save_trained_weights as save_trained_weights
    from .modeling.visual_tokenizer import VisionFeatures as VisionFeatures
    from .modeling.visual_tokenizer import VisualTokenizer as VisualTokenizer
    from .modeling.visual_tokenizer import VisualTokenizerOutput as VisualTokenizerOutput
    from .processing.collator import VisualLanguageCollator as VisualLanguageCollator
    from .processing.image_collator import ImageCollator as ImageCollator
    from .processing.images import load_image as load_image
    from .processing.processing_gvt import GVTProcessor as GVTProcessor
    from .processing.processing_setokim import SetokimProcessor as SetokimProcessor
    from .processing.processing_vtlmm import VTLMMProcessor as VTLMMProcessor
    from .processing.setokim_pipeline import SetokimPipeline as SetokimPipeline
    from .trainer.cutouts import CutoutLibrary as CutoutLibrary
    from .trainer.data_sources import DataSource as DataSource
    from .trainer.data_sources import load_data_source as load_data_source
    from .trainer.data_sources import mix_data_sources as mix_data_sources
    from .trainer.feature_distillation_config import FeatureDistillationConfig as FeatureDistillationConfig
    from .trainer.feature_distillation_trainer import FeatureDistillationTrainer as FeatureDistillationTrainer
    from .trainer.scene_set import write_scenes as write_scenes
    from .trainer.setok_config import SeTokTrainingConfig as SeTokTrainingConfig
    from .trainer.setok_trainer import SeTokTrainer as SeTokTrainer
    from .trainer.setokim_config import SetokimTrainingConfig as SetokimTrainingConfig
    from .trainer.setokim_trainer import SetokimTrainer as SetokimTrainer
    from .trainer.visual_language_config import VisualLanguageConfig as VisualLanguageConfig
    from .trainer.visual_language_trainer import VisualLanguageTrainer as VisualLanguageTrainer
    from .trainer.visual_modeling_config import VisualModelingConfig as VisualModelingConfig
    from .trainer.visual_modeling_trainer import VisualModelingTrainer as VisualModelingTrainer

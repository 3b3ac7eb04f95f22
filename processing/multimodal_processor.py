"""What the processors of composed models have in common: images and text, with placeholders that are counted."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin

from ..configuration.hub_pushing import PushedToHub
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.composition import add_image_token
from .chat_templates import get_chat_template


class MultimodalProcessor(PushedToHub, ProcessorMixin):
    """
    Turns images and text into the inputs of a composed model. A processor of this kind calls
    [`MultimodalProcessor._prepare`] in its `__init__`, and says what an image becomes in `replace_image_token`.

    Class attributes:
        template_names (`dict[str, str]`): chat templates that this processor calls otherwise than
            [`CHAT_TEMPLATES`] does.
    """

    template_names: ClassVar[Mapping[str, str]] = {}

    def _prepare(self, tokenizer: Any, num_image_tokens: int, chat_template: Any) -> str:
        """Makes the tokenizer fit for images; returns the chat template as Jinja."""
        if tokenizer is None:
            raise TypeError(f"{type(self).__name__} got no tokenizer: give that of the language model as tokenizer.")
        if not isinstance(num_image_tokens, int) or num_image_tokens < 1:
            raise ValueError(
                f"num_image_tokens is {num_image_tokens!r}: give the number of visual tokens of an image, 1 or more."
            )
        if not isinstance(chat_template, str):
            raise TypeError(
                f"chat_template is a {type(chat_template).__name__}: give one Jinja template, or the name of one."
            )
        self.image_token_id = add_image_token(tokenizer)
        tokenizer.padding_side = "left"  # answers are generated at the end of a prompt
        self.image_token = tokenizer.image_token
        self.num_image_tokens = num_image_tokens
        return self.named_chat_template(chat_template)

    def named_chat_template(self, name: str) -> str:
        """
        A chat template by the name that this processor has for it.

        Args:
            name (`str`): a name, or a Jinja template, returned as it is.

        Raises:
            ValueError: if the name is unknown.
        """
        return get_chat_template(self.template_names.get(name, name), self.image_token)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """
        Raises:
            ValueError: if there are not as many placeholders as images, in any row where images come in rows; names
                both numbers.
        """
        # newer versions of transformers compare them too
        if text is not None and self.image_token is not None and not kwargs.get("sanitize_control_tokens"):
            written = [sample.count(self.image_token) for sample in text]
            given = 0 if images is None else len(make_flat_list_of_images(images))
            if sum(written) != given:
                raise ValueError(
                    f"The text has {sum(written)} {self.image_token} tokens and {given} images were given: write one "
                    f"{self.image_token} for each image."
                )
            in_rows = isinstance(images, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in images)
            if given and in_rows:
                self._compare_rows(written, [len(row) for row in images])
        super().validate_inputs(images=images, text=text, **kwargs)

    def _compare_rows(self, written: list[int], given: list[int]) -> None:
        if len(written) != len(given):
            raise ValueError(
                f"{len(written)} texts and {len(given)} lists of images were given: give one list for each text."
            )
        for row, (tokens, images) in enumerate(zip(written, given)):
            if tokens != images:
                raise ValueError(
                    f"Text {row} has {tokens} {self.image_token} tokens and {images} images were given for it: write "
                    f"one {self.image_token} for each image of its list."
                )

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )


def load_image_processor(
    vision: str, image_size: int | None = None, vision_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """
    The image processor of a vision checkpoint.

    Args:
        vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
        image_size (`int`, *optional*): resizes images to a square of so many pixels, without crop.
        vision_kwargs (`dict`, *optional*): for its `from_pretrained`.
    """
    image_processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(vision), **(vision_kwargs or {}))
    if image_size is not None:
        image_processor.size = {"height": image_size, "width": image_size}
        image_processor.do_resize = True
        image_processor.do_center_crop = False
    return image_processor


def load_tokenizer(text: str, text_kwargs: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a language checkpoint, which can pad.

    Args:
        text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
        text_kwargs (`dict`, *optional*): for its `from_pretrained`.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint(text), **(text_kwargs or {}))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


__all__ = ["MultimodalProcessor", "load_image_processor", "load_tokenizer"]

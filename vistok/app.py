"""The page of `vistok app`: an image, a system, a conversation, and what the system sees beside the answer."""

import atexit
import logging
import os
import shutil
import tempfile
from abc import ABCMeta
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from .app_systems import LoadedSystem, System, offered_systems
from .configuration.optional import require
from .modeling.atomic_folder import FetchError
from .processing.images import BadSampleError, load_image

MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 50_000_000
TITLE = "vistok: what a language model reads of an image"
INTRODUCTION = f"""# {TITLE}
Give an image, choose a system and ask. Beside the answer stands what the system's visual tokens are made of."""
NO_IMAGE = "There is no image yet: upload one, paste one, or take an example."
NO_QUESTION = "Write a question first, such as “What object is in the image?”"
SHOWS_ONLY = "(This system has no language model: it shows its tokens, and answers nothing.)"
FONT = ("system-ui", "sans-serif")
MONOSPACED = ("ui-monospace", "monospace")
STYLE = "footer { display: none } #note:empty { display: none }"

Turns = list[tuple[str, str]]


class Reply(NamedTuple):
    """
    What follows from a question.

    Args:
        turns (`list[tuple[str, str]]`): questions and answers of the conversation up to now.
        picture (`PIL.Image.Image`, *optional*): what the system sees.
        note (`str`): what the picture shows, or what to do where there is no answer.
        is_answered (`bool`): whether the question was.
    """

    turns: Turns
    picture: Image.Image | None
    note: str
    is_answered: bool


@dataclass
class Conversation:
    """
    What was asked and answered about one image by one system.

    Args:
        turns (`list[tuple[str, str]]`): questions and answers up to now.
        is_over (`bool`): whether another image or system was chosen: an answer still to come is then nobody's.
    """

    turns: Turns = field(default_factory=list)
    is_over: bool = False


@dataclass
class Conversations:
    """
    Puts questions to systems, each of which is loaded when it is first asked and kept.

    Args:
        systems (`list[System]`): of different names.
    """

    systems: Sequence[System]
    _loaded: dict[str, LoadedSystem] = field(default_factory=dict)

    def named(self, name: str) -> System:
        """
        Raises:
            ValueError: if no system has this name.
        """
        for system in self.systems:
            if system.name == name:
                return system
        raise ValueError(f"There is no system {name!r}: choose {', '.join(system.name for system in self.systems)}.")

    def ask(self, image_file: str | None, name: str, question: str, turns: Turns) -> Reply:
        """
        Asks a system about an image. Whatever a user can mend is told in the note of the reply.

        Args:
            image_file (`str`, *optional*): path of the image.
            name (`str`): of the system.
            question (`str`): may be empty where the system only shows.
            turns (`list[tuple[str, str]]`): what was asked and answered before about this image.

        Returns:
            [`Reply`].
        """
        try:
            return self._reply(image_file, name, question.strip(), turns)
        except BadSampleError as error:
            return Reply(turns, None, f"⚠ This image cannot be used: {error.reason}. Give another one.", False)
        except (ValueError, OSError, ImportError, FetchError) as error:
            return Reply(turns, None, f"⚠ {error}", False)

    def _reply(self, image_file: str | None, name: str, question: str, turns: Turns) -> Reply:
        system = self.named(name)
        if system.model is None:
            raise ValueError(system.missing)
        if image_file is None:
            raise ValueError(NO_IMAGE)
        image = load_image(image_file, max_pixels=MAX_PIXELS)
        loaded = self._loaded.setdefault(name, LoadedSystem(system))
        if not loaded.answers:
            look = loaded.look(image)
            return Reply([*turns, (question or "What do you see?", SHOWS_ONLY)], look.picture, look.caption, True)
        if not question:
            raise ValueError(NO_QUESTION)
        answer = loaded.answer(image, question, turns)
        look = loaded.look(image, question, answer)
        return Reply([*turns, (question, answer or "(no answer)")], look.picture, look.caption, True)


def about(system: System) -> str:
    """What the page says of the chosen system."""
    return f"{system.about}\n\n⚠ {system.missing}" if system.missing else system.about


def build_page(models: Sequence[str | os.PathLike] = ()) -> Any:
    """
    Builds the page; nothing is loaded yet.

    Args:
        models (`list[str]`, *optional*): folders or Hub ids, offered before the systems of vistok.

    Returns:
        `gradio.Blocks`, to be started with [`serve`].

    Raises:
        ImportError: if gradio or matplotlib is not installed; names the extra.
        FileNotFoundError, OSError: if a model does not exist.
    """
    gr = _gradio()
    require("matplotlib.figure", "app")
    systems = offered_systems(models)
    conversations = Conversations(systems)

    def ask(image_file, name, question, conversation):
        reply = conversations.ask(image_file, name, question, conversation.turns)
        if conversation.is_over:
            return [gr.skip()] * 5
        left = "" if reply.is_answered else question
        return _messages(reply.turns), Conversation(reply.turns), left, reply.picture, reply.note

    def begin(name, conversation):
        conversation.is_over = True
        return [], Conversation(), None, "", about(conversations.named(name))

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        conversation = gr.State(Conversation())
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = _image_file(gr)(label="Image", sources=["upload", "clipboard"], height=300, elem_id="image")
                names = [system.name for system in systems]
                name = gr.Radio(names, value=names[0], label="System", elem_id="system")
                explained = gr.Markdown(about(systems[0]), elem_id="about")
            with gr.Column(scale=3, min_width=320):
                chat = gr.Chatbot(
                    label="Conversation", height=240, render_markdown=False, buttons=["copy"], elem_id="chat",
                    feedback_options=None,
                )  # fmt: skip
                question = gr.Textbox(
                    label="Question", placeholder="What object is in the image?", submit_btn="Ask", elem_id="question",
                    max_length=500,
                )  # fmt: skip
                note = gr.Markdown(elem_id="note")
                picture = gr.Image(
                    label="What the system sees", show_label=False, interactive=False, format="png", elem_id="picture",
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
        gr.Examples(_examples(), [image, question], label="Examples")
        asked = question.submit(
            ask, [image, name, question, conversation], [chat, conversation, question, picture, note], api_name="ask"
        )
        for event in (image.change, name.change, chat.clear):
            # A question that still waits is not put any more; the answer to one that is being answered is not shown.
            event(
                begin, [name, conversation], [chat, conversation, picture, note, explained],
                api_visibility="private", cancels=[asked],
            )  # fmt: skip
    return page


def serve(page: Any, host: str | None = None, port: int | None = None, block: bool = True) -> str:
    """
    Starts a page, for this machine alone unless a host says otherwise.

    Args:
        page (`gradio.Blocks`): from [`build_page`].
        host (`str`, *optional*): address to listen on; by default `GRADIO_SERVER_NAME`, or 127.0.0.1.
        port (`int`, *optional*): by default `GRADIO_SERVER_PORT`, or the first free one from 7860 on.
        block (`bool`, *optional*, defaults to `True`): go on until the process is interrupted.

    Returns:
        `str`: address of the page.

    Raises:
        OSError: if the port is not free.
    """
    gr = _gradio()
    theme = gr.themes.Default(font=FONT, font_mono=MONOSPACED)
    _, address, _ = page.queue(default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=MAX_FILE_SIZE,
        footer_links=[],
        theme=theme,
        css=STYLE,
    )
    if block:
        print(f"The app is at {address} (Ctrl-C ends it).", flush=True)
        page.block_thread()
    return address


def _gradio() -> Any:
    # Read when gradio is imported: without it, each start is told to its makers.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the page is asked once whether it is there
    return require("gradio", "app")


def _image_file(gr: Any) -> type:
    """gradio's image, given to functions as the path of a file not opened yet: [`load_image`] says what is wrong."""

    def preprocess(self, payload):
        return None if payload is None else payload.path

    # A class statement would run gradio's metaclass, which writes a file of types beside this one.
    members = {"preprocess": preprocess, "is_template": True}  # a template: in the browser it is gradio's own
    return ABCMeta.__new__(type(gr.Image), "ImageFile", (gr.Image,), members)


def _messages(turns: Turns) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _examples() -> list[list[str]]:
    """Drawings with questions, and photographs where scikit-image is installed, which ships them."""
    folder = Path(tempfile.mkdtemp(prefix="vistok-app-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((64, 64, 192, 192), fill="blue")
    image.save(folder / "circle.png")
    examples = [[str(folder / "circle.png"), "What color is the circle?"]]
    try:
        require("skimage.data", "demo")
    except ImportError:
        return examples
    from .demo import PHOTOGRAPHS, photograph

    for shown in {photo.name: photo for photo in reversed(PHOTOGRAPHS)}.values():
        photograph(shown.name).save(folder / f"{shown.name}.jpg")
        examples.append([str(folder / f"{shown.name}.jpg"), shown.question])
    return examples


__all__ = ["Conversations", "Reply", "build_page", "serve"]

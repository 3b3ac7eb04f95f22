"""Images as words: what is read of a model, the picture, and the page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_gvt, tiny_image
from tests.tiny_kinds import tiny_vtlmm, tiny_vtlmm_processor
from vistok.evaluation.attention_maps import seen_image
from vistok.evaluation.word_map import WordMap, map_files, read_word_map
from vistok.evaluation.word_map_page import _section, write_word_page
from vistok.evaluation.word_map_picture import (
    READABLE,
    Fonts,
    draw_word_map,
    quoted_mark,
    two_lines,
    word_picture,
)
from vistok.processing.token_labels import TokenLabels


def word_map(words, scores=None, *, entropy=True, **options) -> WordMap:
    """A map of a grey image from rows of words, each the only one of its patch, or its list."""
    words = np.array([[[one] if isinstance(one, str) else list(one) for one in row] for row in words], dtype=object)
    if scores is None:
        scores = np.broadcast_to(0.5 ** np.arange(1, words.shape[2] + 1), words.shape)
    grid = words.shape[:2]
    image = Image.new("RGB", (30 * grid[1], 30 * grid[0]), "grey")
    return WordMap(image, words, np.asarray(scores, dtype=float), np.full(grid, 1.25) if entropy else None, **options)


class TestReading:
    def test_the_words_are_those_of_the_distribution_of_each_patch(self):
        model, processor, image = tiny_vtlmm(), tiny_vtlmm_processor(), tiny_image(2)
        found = read_word_map(model, processor, image, top_k=3)
        pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = model.model.get_adapter_features(pixel_values).last_hidden_state[0]
            distribution = torch.softmax(features @ model.model.vm_head.weight.t(), -1)
        best = distribution.topk(3)
        labels = TokenLabels(processor.tokenizer)
        assert found.grid_size == (3, 3)
        assert found.words.reshape(9, 3).tolist() == labels.texts(best.indices.numpy()).tolist()
        assert found.scores.reshape(9, 3) == pytest.approx(best.values.numpy(), abs=1e-6)
        entropy = torch.special.entr(distribution).sum(-1)
        assert found.entropy.reshape(9) == pytest.approx(entropy.numpy(), abs=1e-4)

    def test_the_nearest_words_are_those_of_the_most_similar_embeddings(self):
        model, processor, image = tiny_vtlmm(), tiny_vtlmm_processor(), tiny_image(2)
        found = read_word_map(model, processor, image, top_k=2, nearest=True)
        pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = model.model.get_adapter_features(pixel_values).last_hidden_state[0]
        table = model.get_input_embeddings().weight.detach()
        table = table[torch.arange(len(table)) != model.config.image_token_id]
        similarities = torch.nn.functional.cosine_similarity(features[:, None], table[None], dim=-1)
        assert found.measure == "cosine similarity" and found.entropy is None
        assert found.scores.reshape(9, 2) == pytest.approx(similarities.topk(2).values.numpy(), abs=1e-5)

    @pytest.mark.parametrize("nearest", [False, True])
    def test_class_tokens_are_no_patches(self, nearest):
        patches_alone = tiny_vtlmm()
        with_class = tiny_vtlmm(vision_feature_select_strategy="full")
        with_class.load_state_dict(patches_alone.state_dict())
        one, other = (
            read_word_map(model, tiny_vtlmm_processor(), tiny_image(1), nearest=nearest)
            for model in (patches_alone, with_class)
        )
        assert one.words.tolist() == other.words.tolist() and one.scores == pytest.approx(other.scores, abs=1e-6)
        found = with_class.get_visual_tokens(torch.randn(1, 3, 24, 24))
        assert (found.num_prefix_tokens, found.grid_size, found.entropy.shape) == (1, (3, 3), (1, 10))

    def test_pseudo_image_features_leave_the_words_as_they_are(self):
        plain = tiny_vtlmm()
        pseudo = tiny_vtlmm(pseudo_image_features=True)
        pseudo.load_state_dict(plain.state_dict())
        maps = [read_word_map(model, tiny_vtlmm_processor(), tiny_image(1)) for model in (plain, pseudo)]
        assert maps[0].words.tolist() == maps[1].words.tolist()

    def test_the_image_is_shown_in_the_resolution_of_its_file(self):
        found = read_word_map(tiny_vtlmm(), tiny_vtlmm_processor(), tiny_image(0, size=(500, 400)))
        assert found.image.size == (504, 504)  # 24 pixels of the model, 21 times finer

    def test_a_finer_image_shows_the_same_part(self):
        model, processor = tiny_vtlmm(), tiny_vtlmm_processor()
        image = Image.linear_gradient("L").convert("RGB").resize((200, 200))
        coarse, fine = seen_image(model, processor, image), seen_image(model, processor, image, scale=5)
        assert fine.size == (120, 120)
        difference = np.asarray(fine.resize(coarse.size)).astype(int) - np.asarray(coarse)
        assert abs(difference).max() < 12

    def test_an_image_processor_of_one_size_alone_leaves_the_image_as_the_model_sees_it(self):
        processor = tiny_vtlmm_processor()
        prepare = processor.image_processor

        class OneSize:
            image_mean, image_std, rescale_factor = prepare.image_mean, prepare.image_std, prepare.rescale_factor
            size = prepare.size

            def __call__(self, images, return_tensors, **sizes):
                return prepare(images, return_tensors=return_tensors)

        processor.image_processor = OneSize()
        assert seen_image(tiny_vtlmm(), processor, tiny_image(0), scale=4).size == (24, 24)

    def test_a_model_without_the_head_is_told(self):
        with pytest.raises(ValueError, match=r"GVTForConditionalGeneration \(gvt\) has no visual modelling head"):
            read_word_map(tiny_gvt(), None, tiny_image())

    def test_more_words_than_the_vocabulary_has_are_refused(self):
        with pytest.raises(ValueError, match="385"):
            read_word_map(tiny_vtlmm(), tiny_vtlmm_processor(), tiny_image(), top_k=385)

    def test_numbers_that_are_not_finite_are_told(self):
        model = tiny_vtlmm()
        with torch.no_grad():
            model.model.vm_head.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="not finite: the weights of the model may be damaged"):
            read_word_map(model, tiny_vtlmm_processor(), tiny_image())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scores": np.zeros((2, 2, 1))}, "words have the shape"),
            ({"entropy": np.zeros((3, 2))}, "entropy has the shape"),
            ({"measure": "guess"}, "measure is 'guess'"),
        ],
    )
    def test_arrays_that_do_not_fit_are_refused(self, change, message):
        fields = {"image": tiny_image(), "words": np.full((2, 2, 3), "a"), "scores": np.zeros((2, 2, 3)), **change}
        with pytest.raises(ValueError, match=message):
            WordMap(**fields)


class TestNamesOfPictures:
    def test_one_image_has_the_file_that_was_named(self):
        assert [str(file) for file in map_files("out/words.png", ["photo.jpg"])] == ["out/words.png"]

    def test_several_images_have_a_file_each(self):
        files = map_files("out/words.png", ["a.jpg", "b.png", "a.png", "A.jpg", "a-2.jpg"])
        names = [file.name for file in files]
        assert names[:3] == ["words-a.png", "words-b.png", "words-a-2.png"]
        assert len({name.lower() for name in names}) == 5


class TestPicture:
    @pytest.mark.parametrize("grid", [(2, 2), (3, 5), (40, 30)])
    def test_patches_are_large_enough_to_be_read_and_the_picture_to_be_printed(self, grid):
        picture = word_picture(word_map([["dog"] * grid[1]] * grid[0]))
        side = picture.width // grid[1]
        assert picture.size == (side * grid[1], side * grid[0])
        assert side >= 56 and max(picture.size) >= 1600

    def test_each_word_lies_within_its_patch(self):
        words = [["internationally", "a", "<|endoftext|>"], ["dog", "WWWWWWWWWWWWWW", "x" * 80], [",", "gj", "Ẅ"]]
        with_words = np.asarray(word_picture(word_map(words), patch_size=60)).astype(int)
        blank = np.asarray(word_picture(word_map([["␣"] * 3] * 3), patch_size=60)).astype(int)
        changed = abs(with_words - 128).max(-1) > 60
        for line in (0, 59, 60, 119, 120, 179):
            assert not changed[line].any() and not changed[:, line].any()
        patches = changed.reshape(3, 60, 3, 60).any((1, 3))
        assert patches.all() and blank.shape == with_words.shape

    def test_words_are_white_with_a_black_edge_on_any_ground(self):
        for ground in ("white", "black", "red"):
            plain = word_map([["dog"]])
            plain.image.paste(ground, (0, 0, *plain.image.size))
            colours = {tuple(colour) for colour in np.asarray(word_picture(plain, patch_size=100)).reshape(-1, 3)}
            assert {(255, 255, 255), (0, 0, 0)} <= colours

    def test_small_marks_are_quoted_so_that_they_are_no_specks(self):
        quoted = {word: quoted_mark(word) for word in (".", ",", '."', "(", "a", "...", "<", "↵")}
        assert {word for word, shown in quoted.items() if shown != word} == {".", ",", '."'}
        ink = []
        for word in (".", "(", "a"):
            pixels = np.asarray(word_picture(word_map([[word]]), patch_size=100)).astype(int)
            ink.append((abs(pixels - 128).max(-1) > 60).sum())
        assert ink[0] > 0.5 * min(ink[1:])

    def test_long_words_stay_whole_while_they_can_be_read(self):
        fonts, side = Fonts(), 200
        for word in ("airplanes", "alternative"):
            assert fonts.fitted(word, 0.88 * side, 0.27 * side, 0.14 * side, can_break=True)[0] == word
        assert "\n" in fonts.fitted("internationally", 0.88 * side, 0.27 * side, 0.14 * side, can_break=True)[0]

    @pytest.mark.parametrize("side", [56, 67, 100])
    def test_no_word_is_shortened_in_small_patches_that_has_room_on_two_lines(self, side):
        fonts = Fonts()
        for word in ("chickens", "airplanes", "elephants", "alternative", "restaurants"):
            assert "…" not in fonts.fitted(word, 0.88 * side, 0.27 * side, 0.14 * side, can_break=True)[0]

    def test_shading_goes_with_the_score_and_has_a_colour_bar(self):
        scores = np.array([[[0.0], [0.5], [1.0]]])
        plain, shaded = (
            np.asarray(word_picture(word_map([[",", ",", ","]], scores), patch_size=60, shading=shading)).astype(int)
            for shading in (False, True)
        )
        assert shaded.shape[0] > plain.shape[0] == 60
        red, _, blue = (shaded[5, 5::60, channel] for channel in range(3))
        warmth = (red - blue).tolist()
        assert 0 == warmth[0] < warmth[1] < warmth[2]

    def test_cosine_similarities_that_are_all_alike_are_shaded_too(self):
        alike = word_map([["a", "b"]], np.full((1, 2, 1), -0.2), entropy=False, measure="cosine similarity")
        assert word_picture(alike, shading=True, patch_size=60).width == 120

    def test_a_png_of_print_resolution_is_written_into_a_new_folder(self, tmp_path):
        file = tmp_path / "new" / "words.png"
        draw_word_map(word_map([["a", "b"]]), file)
        with Image.open(file) as picture:
            assert picture.format == "PNG" and picture.info["dpi"] == pytest.approx((300, 300), abs=1)

    def test_patches_that_cannot_be_read_are_refused(self):
        with pytest.raises(ValueError, match="patch_size is 20 pixels, expected at least 56"):
            word_picture(word_map([["a"]]), patch_size=20)


class TestFonts:
    @pytest.mark.parametrize("text", ["dog", "·ing", "␣×8", "↵", "⇥⍽", "Ünïcödé", "собака", "…", "“”"])
    def test_dejavu_sans_has_pictures_for_the_signs_of_labels(self, text):
        assert Fonts().printable(text)[1] == text

    @pytest.mark.parametrize(("text", "shown"), [("中文", "U+4E2DU+6587"), ("a中", "aU+4E2D"), ("🙂", "U+1F642")])
    def test_what_no_font_has_is_written_as_its_code_point(self, text, shown):
        if 0x1F642 in Fonts().files[0][1] and text == "🙂":
            shown = text  # DejaVu Sans has some faces
        assert Fonts().printable(text)[1] == shown

    def test_scripts_from_right_to_left_are_escaped_where_they_cannot_be_laid_out(self, monkeypatch):
        monkeypatch.setattr("vistok.evaluation.word_map_picture.features.check", lambda name: False)
        assert Fonts().printable("ال")[1] == "U+0627U+0644"
        monkeypatch.setattr("vistok.evaluation.word_map_picture.features.check", lambda name: True)
        assert Fonts().printable("ال")[1] == "ال"

    def test_a_font_that_is_given_is_asked_first(self):
        mono = Fonts().files[0][0].replace("DejaVuSans.ttf", "DejaVuSansMono.ttf")
        assert Fonts(mono).printable("dog") == (mono, "dog")

    def test_a_missing_font_and_a_file_that_is_none_are_told(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no font .*gone\.ttf"):
            Fonts(tmp_path / "gone.ttf").printable("a")
        (tmp_path / "none.ttf").write_bytes(b"not a font at all")
        with pytest.raises(ValueError, match=r"none\.ttf is no font"):
            Fonts(tmp_path / "none.ttf").printable("a")

    @pytest.mark.parametrize("width", [40.0, 60.0, 200.0])
    def test_a_text_fits_and_is_never_smaller_than_can_be_read(self, width):
        fonts = Fonts()
        for text in ("a", "dog", "mainstream", "internationally", "W" * 40):
            for can_break in (False, True):
                shown, font = fonts.fitted(text, width, 0.3 * width, 0.14 * width, can_break)
                assert font.size >= READABLE
                assert max(font.getlength(line) for line in shown.split("\n")) <= width
                assert len(shown.split("\n")) <= 1 + can_break
                kept = shown.replace("-\n", "").replace("\n", "")
                assert kept == text or (kept.endswith("…") and text.startswith(kept[:-1]))

    def test_only_words_are_broken_with_a_hyphen(self):
        assert two_lines("mainstream") == ["mains-", "tream"]
        assert two_lines("собака") == ["соб-", "ака"]
        assert two_lines("<0xF0><0x9F>") == ["<0xF0>", "<0x9F>"]
        for sign in ("[U+FE0F]", "<0xE4>", "[BEL]"):
            assert not any(line.endswith("-") for line in two_lines(sign))

    def test_scripts_without_hyphens_and_code_points_are_broken_without(self):
        assert two_lines("中文字") == ["中文", "字"]
        assert two_lines(["U+4E2D", "U+6587"]) == ["U+4E2D", "U+6587"]
        assert two_lines(["a", "b", "U+4E2D"]) == ["ab", "U+4E2D"]
        assert Fonts().fitted("中文", 60.0, 18.0, 11.0, can_break=True)[0] == "U+4E2D\nU+6587"

    def test_a_mark_stays_with_its_letter(self):
        assert two_lines("ae\u0301") == ["a-", "e\u0301"]


class Page(HTMLParser):
    """What a page holds: cells with their attributes, texts of panels, rows of tables, and whatever it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.cells, self.loaded, self.tags, self.rows, self.words = [], [], [], [], []
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.loaded += [values[name] for name in ("src", "href", "srcset", "data") if name in values]
        if values.get("role") == "gridcell":
            self.cells.append(values)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if values.get("class") == "word":
            self.words.append("")
        self._within.append("word" if values.get("class") == "word" else tag)

    def handle_endtag(self, tag):
        while self._within and self._within.pop() not in (tag, "word"):
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self._within):
            self.rows[-1][-1] += data
        if "word" in self._within:
            self.words[-1] += data


ODD = [["<", "&", '"', "'"], ["</script>", "<img src=x onerror=alert(1)>", "]]>", "↵"]]


class TestPage:
    def page(self, tmp_path, *maps, **options) -> tuple[str, Page]:
        write_word_page(maps, tmp_path / "new" / "words.html", **options)
        text = (tmp_path / "new" / "words.html").read_text(encoding="utf-8")
        return text, Page(text)

    def test_each_patch_tells_its_words_to_pointer_keyboard_and_screen_reader(self, tmp_path):
        words = [[["dog", "cat"], ["tree", "sky"]]]
        text, page = self.page(tmp_path, word_map(words, [[[0.5, 0.25], [0.9, 0.0004]]]))
        assert [cell["aria-label"] for cell in page.cells] == [
            "row 1, column 1: dog 50.0%; cat 25.0%; all other words 25.0%; entropy 1.25 nats",
            "row 1, column 2: tree 90.0%; sky 0.04%; all other words 10.0%; entropy 1.25 nats",
        ]
        assert all(cell["tabindex"] == "0" for cell in page.cells)
        assert page.words == ["dog", "tree"]
        assert text.count('class="panel"') == 2 and text.count('class="bar"') == 4
        assert "all other words 25.0%<br>entropy 1.25 nats" in text and "all other words 10.0%<br>" in text

    def test_the_panel_is_shown_by_style_alone(self, tmp_path):
        text, _ = self.page(tmp_path, word_map([["a"]]))
        assert re.search(r"\.cell:hover > \.panel, \.cell:focus > \.panel \{ display: block \}", text)

    def test_nothing_is_loaded_from_elsewhere(self, tmp_path):
        text, page = self.page(tmp_path, word_map([["a"]]), word_map([["b"]]))
        assert len(page.loaded) == 2
        assert all(source.startswith("data:image/jpeg;base64,") for source in page.loaded)
        assert not re.search(r"https?://|@import|url\(", text)

    def test_the_table_holds_every_patch(self, tmp_path):
        words = [[["dog", "cat"], ["tree", "sky"]], [[",", "."], ["a", "b"]]]
        _, page = self.page(tmp_path, word_map(words))
        assert page.rows[0] == ["row", "column", "1. word", "2. word", "entropy (nats)"]
        assert page.rows[1] == ["1", "1", "dog (50.0%)", "cat (25.0%)", "1.250"]
        assert [row[:3] for row in page.rows[2:]] == [
            ["1", "2", "tree (50.0%)"],
            ["2", "1", ", (50.0%)"],
            ["2", "2", "a (50.0%)"],
        ]

    def test_no_word_and_no_name_is_taken_for_markup(self, tmp_path):
        _, page = self.page(tmp_path, word_map(ODD, name="<b>&.png"), title="a & <i>b</i>")
        assert page.tags.count("script") == 1 and page.tags.count("img") == 1
        assert page.tags.count("b") == page.tags.count("i") == 8  # headings of panels, and bars
        assert [word.replace("\u00ad", "") for word in page.words] == [
            quoted_mark(word) for row in ODD for word in row
        ]
        assert page.rows[1][2] == "< (50.0%)"
        assert 'row 1, column 3: " 50.0%' in page.cells[2]["aria-label"]

    def test_code_points_are_told_of_letters_that_fonts_may_lack(self, tmp_path):
        _, page = self.page(tmp_path, word_map([["中", "é", "␣"]]))
        assert [row[2] for row in page.rows[1:]] == ["中U+4E2D (50.0%)", "é (50.0%)", "␣ (50.0%)"]

    def test_the_longest_bar_is_that_of_the_highest_probability_in_the_image(self, tmp_path):
        text, _ = self.page(tmp_path, word_map([["a", "b"]], [[[0.2], [0.05]]]))
        assert re.findall(r"--width: ([\d.]+)%", text) == ["100.0", "25.0"]

    def test_similarities_are_told_as_such(self, tmp_path):
        nearest = word_map([["a", "b"]], [[[0.25], [-0.5]]], entropy=False, measure="cosine similarity")
        text, page = self.page(tmp_path, nearest)
        assert [cell["aria-label"] for cell in page.cells] == ["row 1, column 1: a 0.250", "row 1, column 2: b -0.500"]
        assert "nats" not in text and "shade by cosine similarity" in text and "all other words" not in text

    def test_many_images_go_on_to_further_pages_that_are_linked(self, tmp_path):
        maps = [word_map([[f"word{number}"]], name=f"{number}.png") for number in range(7)]
        sizes = [len(_section(one, number)) for number, one in enumerate(maps, start=1)]
        path = tmp_path / "my words.html"
        files = write_word_page(iter(maps), path, page_bytes=3 * max(sizes))
        assert [file.name for file in files] == ["my words.html", "my words-2.html", "my words-3.html"]
        pages = [Page(file.read_text(encoding="utf-8")) for file in files]
        assert [page.words for page in pages] == [
            ["word0", "word1", "word2"],
            ["word3", "word4", "word5"],
            ["word6"],
        ]
        links = [[source for source in page.loaded if source.endswith(".html")] for page in pages]
        first, second, third = "my%20words.html", "my%20words-2.html", "my%20words-3.html"
        assert links == [2 * [second], 2 * [first, third], 2 * [second]]
        assert "images 4 to 6" in files[1].read_text(encoding="utf-8")

    def test_an_image_that_is_larger_than_a_page_has_one_of_its_own(self, tmp_path):
        files = write_word_page([word_map([["a"]]), word_map([["b"]])], tmp_path / "words.html", page_bytes=1)
        assert len(files) == 2

    def test_a_page_of_no_image_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="at least one image"):
            write_word_page([], tmp_path / "words.html")
        assert not (tmp_path / "words.html").exists()

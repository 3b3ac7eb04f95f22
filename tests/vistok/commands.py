"""What tests of several commands need: how a command fails, and what a model says without pipeline."""

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vistok import cli


def answer_of_generate(folder, image, question, max_new_tokens):
    """What the model says, without pipeline: tokens behind a prompt written by hand."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    prompt = f"<image>\nQuestion: {question} Answer:"
    inputs = processor(images=[image], text=prompt, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def fails(capsys, *arguments, num_lines=1):
    """What a command that ends with exit code 2 says on stderr: by default one line, which a reader bears."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vistok {arguments[0]}: error: ")
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) == num_lines, captured.err
    assert max(len(line) for line in lines) < 600, captured.err
    return captured.err

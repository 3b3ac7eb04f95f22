"""A Space of Hugging Face that serves the page of `vistok app`."""

import os

from vistok.app import build_page, serve
from vistok.modeling.base_weights import fetch

if __name__ == "__main__":
    fetch()  # what is in the cache already is left as it is
    serve(build_page(os.environ.get("VISTOK_MODELS", "").split()))

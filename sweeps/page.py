"""The style of the report, and pictures that travel inside it."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

JPEG_QUALITY = 88

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def picture(path: Path, *, alt: str, width: int | None = None) -> str:
    """An <img> that holds the picture itself, scaled down to `width`; an empty text if it cannot be read."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):  # a trial that never got so far
        return ""
    if width is not None and width < image.width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img class="strip" alt="{alt}" {size} src="data:image/jpeg;base64,{data}">'

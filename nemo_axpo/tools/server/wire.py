"""What a tool server and its clients say to each other, as JSON; images travel as PNG in base64.

    GET    /v1/tools                  {"tools": [schema, …]}
    POST   /v1/sessions               {"tool"}                         → {"session"}
    POST   /v1/sessions/<id>/calls    {"number", "arguments", "images"} → {"text", "error", "images"}
    DELETE /v1/sessions/<id>
    GET    /health                    {"status": "ok", "sessions": n}, the one path without a token

``images`` of a call are those of the rollout that the server has not seen; ``number`` counts the calls of a session, so that one
that is sent again after a lost answer is not executed twice. Answers: 401 without the token, 404 for a session that is gone, 422 for
a call that cannot be read, 503 where the tool itself is down.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from nemo_axpo.data.images import ImageStore, decode_image
from nemo_axpo.types import ImageId, ToolResult

TOKEN_VARIABLE = "NEMO_AXPO_TOOL_TOKEN"
"""Environment variable that holds the token on both sides."""


def pack_image(image: Image.Image) -> str:
    """A picture for JSON."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpack_image(text: str) -> Image.Image:
    """ValueError for what is no picture."""
    return decode_image(base64.b64decode(text, validate=True))


def pack_result(result: ToolResult, *, images: ImageStore) -> dict[str, Any]:
    """An observation for JSON."""
    pictures = [pack_image(images.image(image_id)) for image_id in result.image_ids]
    return {"text": result.text, "error": result.error, "images": pictures}


def unpack_result(body: dict[str, Any], *, images: ImageStore) -> ToolResult:
    """The inverse; ValueError for what is no observation."""
    if not (isinstance(body.get("text"), str) and isinstance(body.get("error"), str) and isinstance(body.get("images"), list)):
        raise ValueError(f"an answer without text, error and images; got {sorted(body)}")  # noqa: TRY004 - of a server
    ids: list[ImageId] = [images.add(unpack_image(picture)) for picture in body["images"]]
    return ToolResult(body["text"], tuple(ids), error=body["error"])

"""Function: the image of a seed, which is the one that the batch job makes of it, to the bit.

It takes {"seed"}, with "label" (a class's name) or "caption" where the model takes them, and answers a PNG: its bytes
to a gateway, else {"seed", "png": in base64}.
"""

import base64

import gateway
import model


def drawn(fields: dict) -> bytes:
    """The PNG that is asked for. `Refused` with 400, or with 404 where the model makes no images of seeds."""
    seed = fields.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise gateway.Refused(400, "seed: expected a whole number from 0 to 2^63 - 1")
    _, description = model.load()
    takes = description["signatures"].get("generate", {"inputs": {}})["inputs"]
    if not takes or takes.keys() - {"seed", "label", "caption"}:
        raise gateway.Refused(404, "this model makes no images of seeds, labels or captions")
    columns: dict[str, list] = {"seed": [seed]}
    if "label" in takes:
        classes, label = description["classes"], fields.get("label")
        if label is not None and label not in classes:
            raise gateway.Refused(400, f"label: expected one of {', '.join(classes[:20])}")
        columns["label"] = [seed % len(classes) if label is None else classes.index(label)]
    if "caption" in takes:
        caption = fields.get("caption")
        if not isinstance(caption, str) or not 0 < len(caption) <= 10_000:
            raise gateway.Refused(400, "caption: expected text of 1 to 10000 characters")
        columns["caption"] = [caption]
    return model.ask("generate", **columns)["png_bytes"][0]


@gateway.handles
def handler(event: dict) -> object:
    fields = gateway.fields(event)
    picture = drawn(fields)
    if "body" in event:
        return picture
    return {"seed": fields["seed"], "png": base64.b64encode(picture).decode()}

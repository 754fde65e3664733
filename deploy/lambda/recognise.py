"""Function: what a managed service of recognition sees in an image. No model of ours, and no TensorFlow.

It takes an image as the body (content type image/png) and the parameters `activity` (label-detect or face-detect) and
`fileName`, stores it under raw-image/, and answers label: confidence, or for each face its confidence, emotions and
attributes.
"""

import functools

import boto3
import gateway
import model

LABELS, CONFIDENCE = 5, 90


@functools.cache
def recognition():
    return boto3.client("rekognition")


@gateway.handles
def handler(event: dict) -> object:
    parameters = event.get("queryStringParameters") or {}
    detect = {"label-detect": labels, "face-detect": faces}.get(parameters.get("activity"))
    if detect is None:
        raise gateway.Refused(400, "activity: expected label-detect or face-detect")
    name = gateway.name(parameters.get("fileName"), "fileName").removesuffix(".png")
    picture = gateway.png(gateway.body(event), "body")
    key = f"raw-image/{name}.png"
    model.put(key, picture, "image/png")
    return detect({"S3Object": {"Bucket": model.bucket(), "Name": key}})


def labels(image: dict) -> dict[str, float]:
    answer = recognition().detect_labels(Image=image, MaxLabels=LABELS, MinConfidence=CONFIDENCE)
    return {label["Name"]: label["Confidence"] for label in answer["Labels"]}


def faces(image: dict) -> dict[str, dict]:
    """By number: {"confidence", "emotions": by name, "attributes": by name, those that are true or false}."""
    answer = recognition().detect_faces(Image=image, Attributes=["ALL"])
    return {
        f"face {number}": {
            "confidence": face["Confidence"],
            "emotions": {emotion["Type"]: emotion["Confidence"] for emotion in face.get("Emotions", [])},
            "attributes": {
                name: {"value": value["Value"], "confidence": value["Confidence"]}
                for name, value in face.items()
                if isinstance(value, dict) and "Value" in value and "Confidence" in value
            },
        }
        for number, face in enumerate(answer["FaceDetails"], 1)
    }

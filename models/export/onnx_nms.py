"""Non-max suppression as operators of an ONNX graph."""

from __future__ import annotations

from utils.system.packages import need

FIRST_OPSET = 13  # the graph below is written for it and all later ones

# `k` is the number of rows that come out, `each` the class numbers. A picture's boxes are suppressed per class by
# setting a box's scores of all classes but its best to zero, which keeps coordinates exact: YOLOv5 moves classes apart.
# The operator's own limit is per class; taking the best of what it selects makes it one per picture.
GRAPH = """
suppress (float[B,N,W] decoded) => (float[B,K,6] rows)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}}, int64[1] five = {{5}},
 int64[1] end = {{9223372036854775807}}, int64[2] picture_and_row = {{0, 2}}, int64[3] six_columns = {{1, 1, 6}},
 int64[1] max_det = {{{max_det}}}, float[1] iou_thres = {{{iou_thres}}}, float[1] conf_thres = {{{conf_thres}}},
 int64[1,1,{nc}] each = {{{classes}}}, float zero_score = {{0}}, float half = {{0.5}}>
{{
    boxes = Slice (decoded, zero, four, two)
    objectness = Slice (decoded, four, five, two)
    of_classes = Slice (decoded, five, end, two)
    scores = Mul (objectness, of_classes)
    score, label = TopK <axis = 2> (scores, one)
    {candidates}
    selected = NonMaxSuppression <center_point_box = 1> (boxes, candidates, max_det, iou_thres, conf_thres)
    kept = Gather <axis = 1> (selected, picture_and_row)
    flat = Squeeze (score, two)
    kept_scores = GatherND (flat, kept)
    no_scores = Mul (flat, zero_score)
    marked = ScatterND (no_scores, kept, kept_scores)
    shape = Shape (decoded)
    n = Gather <axis = 0> (shape, one)
    k = Min (n, max_det)
    best, row = TopK <axis = 1> (marked, k)
    xy = Slice (boxes, zero, two, two)
    wh = Slice (boxes, two, four, two)
    half_wh = Mul (wh, half)
    top_left = Sub (xy, half_wh)
    bottom_right = Add (xy, half_wh)
    number = Cast <to = 1> (label)
    table = Concat <axis = 2> (top_left, bottom_right, score, number)
    row_index = Unsqueeze (row, two)
    row_of_each = Expand (row_index, six_columns)
    found = GatherElements <axis = 1> (table, row_of_each)
    best_column = Unsqueeze (best, two)
    is_found = Greater (best_column, zero_score)
    rows = Where (is_found, found, zero_score)
}}
"""
PER_CLASS = """is_best = Equal (each, label)
    best_alone = Where (is_best, scores, zero_score)
    candidates = Transpose <perm = [0, 2, 1]> (best_alone)"""
AGNOSTIC = "candidates = Transpose <perm = [0, 2, 1]> (score)"


def add_nms(model, output: str, conf_thres: float, iou_thres: float, max_det: int, agnostic: bool):
    """A copy of an ONNX model whose decoded boxes have gone through non-max suppression.

    It answers as `utils.boxes.non_max_suppression` without `multi_label`: a box counts for its best class, and goes
    where a better box of that class (`agnostic`: of any class) overlaps it by more than `iou_thres`.

    Args:
        model: `onnx.ModelProto`, opset 13 or later.
        output: Name of the decoded boxes [B,n,5+nc], float32. Its place and name are taken by [B,k,6] with x1, y1, x2,
            y2 in pixels of the input, score, class; best first; rows after the last detection are zero. k is `max_det`,
            or n where that is smaller.

    Raises:
        ValueError: The opset is too old.
    """
    onnx = need("onnx", "--nms")
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset < FIRST_OPSET:
        raise ValueError(f"--nms needs --opset {FIRST_OPSET} or later, not {opset}")
    decoded = next(o for o in model.graph.output if o.name == output)
    batch, n, width = decoded.type.tensor_type.shape.dim
    nc = width.dim_value - 5
    graph = onnx.parser.parse_graph(
        GRAPH.format(
            conf_thres=f"{conf_thres:.9f}", iou_thres=f"{iou_thres:.9f}", max_det=max_det, nc=nc,
            classes=", ".join(map(str, range(nc))), candidates=AGNOSTIC if agnostic else PER_CLASS,
        )
    )  # fmt: skip
    graph = onnx.compose.add_prefix_graph(graph, "nms/")
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for node in new.graph.node:  # the decoded boxes give up their name
        for names in (node.input, node.output):
            names[:] = ["nms/decoded" if name == output else name for name in names]
    for node in graph.node:
        node.output[:] = [output if name == "nms/rows" else name for name in node.output]
    new.graph.node.extend(graph.node)
    new.graph.initializer.extend(graph.initializer)
    rows = next(o for o in new.graph.output if o.name == output).type.tensor_type.shape
    if n.HasField("dim_value"):
        rows.dim[1].dim_value = min(max_det, n.dim_value)
    else:
        rows.dim[1].dim_param = "detections"
    rows.dim[2].dim_value = 6
    return new

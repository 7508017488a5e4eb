"""Detection data as people have them: COCO, PASCAL VOC, YOLO, LabelMe, and Roboflow's exports of the first three.

:func:`~maskrcnn_benchmark.data.forms.recognise.recognise` finds out what a folder or file is,
:func:`~maskrcnn_benchmark.data.forms.read.read` reads it into one model and collects every problem on the way,
:func:`~maskrcnn_benchmark.data.forms.checks.check` looks at what was read, and
:func:`~maskrcnn_benchmark.data.forms.convert.convert` writes it in another form.
"""

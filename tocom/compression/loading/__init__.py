"""Models from what people have: timm names, checkpoint files and folders of many libraries, modules in memory."""

"""The words of the pages, in English and in simplified Chinese; the browser's language decides."""

from __future__ import annotations

import re
from collections.abc import Mapping

import gradio as gr
from gradio.i18n import I18nData

#: Key: English, Chinese.
WORDS: dict[str, tuple[str, str]] = {
    "checkpoint": ("Stable Diffusion checkpoint", "Stable Diffusion 模型"),
    "vae": ("SD VAE", "SD VAE 模型"),
    "refresh": ("↻ Refresh", "↻ 刷新"),
    "txt2img": ("txt2img", "文生图"),
    "img2img": ("img2img", "图生图"),
    "inpaint": ("Inpaint", "局部重绘"),
    "extras": ("Extras", "后期处理"),
    "png_info": ("PNG Info", "图片信息"),
    "settings": ("Settings", "设置"),
    "prompt": ("Prompt", "提示词"),
    "prompt_hint": ("What the picture shows", "描述画面内容"),
    "negative_prompt": ("Negative prompt", "反向提示词"),
    "negative_hint": ("What it must not show", "不希望出现的内容"),
    "generate": ("Generate", "生成"),
    "interrupt": ("Interrupt", "中止"),
    "skip": ("Skip", "跳过"),
    "paste": ("↙ Read from prompt", "↙ 从提示词读取参数"),
    "styles": ("Styles", "预设样式"),
    "sampler": ("Sampling method", "采样方法"),
    "scheduler": ("Schedule type", "调度类型"),
    "steps": ("Sampling steps", "迭代步数"),
    "width": ("Width", "宽度"),
    "height": ("Height", "高度"),
    "swap": ("⇅ Swap sides", "⇅ 交换宽高"),
    "batch_count": ("Batch count", "总批次数"),
    "batch_size": ("Batch size", "单批数量"),
    "cfg_scale": ("CFG scale", "提示词引导系数 (CFG)"),
    "seed": ("Seed (-1: random)", "随机数种子 (-1 为随机)"),
    "reuse_seed": ("Last seed", "上次种子"),
    "random_seed": ("Random", "随机"),
    "variation": ("Variation seed", "变异随机种子"),
    "subseed": ("Variation seed", "变异种子"),
    "subseed_strength": ("Variation strength", "变异强度"),
    "hires_fix": ("Hires. fix", "高分辨率修复"),
    "enable": ("Enable", "启用"),
    "upscaler": ("Upscaler", "放大算法"),
    "hires_steps": ("Hires steps (0: as above)", "高分迭代步数 (0 为同上)"),
    "denoising": ("Denoising strength", "重绘幅度"),
    "upscale_by": ("Upscale by", "放大倍数"),
    "resize_width": ("Resize width to", "将宽度调整为"),
    "resize_height": ("Resize height to", "将高度调整为"),
    "refiner": ("Refiner", "精炼模型"),
    "switch_at": ("Switch at", "切换时机"),
    "networks": ("LoRA and embeddings", "LoRA 与嵌入式模型"),
    "preprocessor": ("Preprocessor", "预处理器"),
    "model": ("Model", "模型"),
    "pixel_perfect": ("Pixel perfect", "完美像素模式"),
    "control_weight": ("Control weight", "控制权重"),
    "control_start": ("Starting control step", "引导介入时机"),
    "control_end": ("Ending control step", "引导终止时机"),
    "control_mode": ("Control mode", "控制模式"),
    "source": ("Source picture", "源图片"),
    "mask_picture": ("Paint over what is to change", "涂抹需要重绘的区域"),
    "resize_mode": ("Resize mode", "缩放模式"),
    "resize_just": ("Just resize", "仅调整大小"),
    "resize_crop": ("Crop and resize", "裁剪后缩放"),
    "resize_fill": ("Resize and fill", "缩放后填充空白"),
    "resize_latent": ("Just resize (latent upscale)", "调整大小 (潜空间放大)"),
    "mask_blur": ("Mask blur", "蒙版边缘模糊度"),
    "mask_mode": ("Mask mode", "蒙版模式"),
    "masked": ("Inpaint masked", "重绘蒙版内容"),
    "not_masked": ("Inpaint not masked", "重绘非蒙版内容"),
    "masked_content": ("Masked content", "蒙版区域内容处理"),
    "fill": ("fill", "填充"),
    "original": ("original", "原版"),
    "latent_noise": ("latent noise", "潜空间噪声"),
    "latent_nothing": ("latent nothing", "空白潜空间"),
    "inpaint_area": ("Inpaint area", "重绘区域"),
    "whole_picture": ("Whole picture", "整张图片"),
    "only_masked": ("Only masked", "仅蒙版区域"),
    "padding": ("Only masked padding, pixels", "仅蒙版区域边缘预留像素"),
    "gallery": ("Pictures", "图片"),
    "preview": ("Live preview", "实时预览"),
    "infotext": ("Generation parameters", "生成参数"),
    "waiting": ("Waiting for its turn", "排队等待中"),
    "interrupted": ("interrupted", "已中止"),
    "nothing_to_send": ("there is no picture to send yet", "还没有可发送的图片"),
    "no_infotext": ("the prompt holds no generation parameters", "提示词中没有生成参数"),
    "picture_without_infotext": ("the picture tells no generation parameters", "图片中没有生成参数"),
    "no_picture": ("there is no picture yet", "还没有图片"),
    "no_checkpoint": (
        "There is no checkpoint yet. Put one (.safetensors) into the models/Stable-diffusion folder of the "
        "data dir, then press Refresh.",
        "还没有模型。请把模型文件 (.safetensors) 放入数据目录的 models/Stable-diffusion 文件夹，"
        "然后点击“刷新”。",
    ),
    "open_folder": ("Open folder", "打开文件夹"),
    "source_size": ("Size of the source", "使用源图尺寸"),
    "upload_mask": ("Inpaint upload", "上传蒙版"),
    "mask": ("Mask: white is drawn anew", "蒙版：白色区域会被重绘"),
    "send_inpaint": ("Send to Inpaint", "发送到局部重绘"),
    "send_img2img": ("Send to img2img", "发送到图生图"),
    "send_extras": ("Send to Extras", "发送到后期处理"),
    "send_txt2img": ("Send to txt2img", "发送到文生图"),
    "upscaler_2": ("Upscaler 2", "放大算法 2"),
    "upscaler_2_visibility": ("Upscaler 2 visibility", "放大算法 2 强度"),
    "picture": ("Picture", "图片"),
    "other_data": ("Other data in the file", "文件中的其他数据"),
    "apply": ("Apply settings", "保存设置"),
    "saving": ("Saving pictures", "保存图片"),
    "making": ("Making pictures", "生成图片"),
    "previewing": ("Live previews", "实时预览"),
    "any_option": ("Any other option", "其他选项"),
    "option_name": ("Option", "选项"),
    "option_value": ("Value (JSON)", "值 (JSON)"),
    "nothing_changed": ("Nothing to change", "没有需要更改的设置"),
    "default_checkpoint": ("Default checkpoint", "默认模型"),
    "option_samples_save": ("Save every picture", "保存所有图片"),
    "option_samples_format": ("Format of pictures", "图片格式"),
    "option_samples_filename_pattern": (
        "Pattern of file names (empty: number and seed)",
        "文件名格式 (留空为编号和种子)",
    ),
    "option_grid_save": ("Save every grid", "保存所有网格图"),
    "option_grid_format": ("Format of grids", "网格图格式"),
    "option_jpeg_quality": ("Quality of JPEG and WebP (1 to 100)", "JPEG 与 WebP 质量 (1 至 100)"),
    "option_enable_pnginfo": ("Write the generation parameters into the file", "将生成参数写入文件"),
    "option_outdir_txt2img_samples": ("Folder of txt2img's pictures", "文生图的输出文件夹"),
    "option_outdir_img2img_samples": ("Folder of img2img's pictures", "图生图的输出文件夹"),
    "option_save_to_dirs": ("Save into subfolders", "保存到子文件夹"),
    "option_directories_filename_pattern": ("Pattern of subfolders' names", "子文件夹名格式"),
    "option_CLIP_stop_at_last_layers": ("Clip skip", "CLIP 终止层数 (Clip skip)"),
    "option_emphasis": ("Emphasis in prompts", "提示词强调方式"),
    "option_randn_source": ("Where random numbers come from", "随机数来源"),
    "option_eta_noise_seed_delta": ("Eta noise seed delta", "Eta 噪声种子偏移 (ENSD)"),
    "option_img2img_color_correction": ("Keep the source's colours in img2img", "图生图保持原图颜色"),
    "option_initial_noise_multiplier": ("Noise multiplier of img2img", "图生图噪声倍率"),
    "option_tiling": ("Pictures that tile", "可平铺图片"),
    "option_live_previews_enable": ("Show live previews", "显示实时预览"),
    "option_show_progress_every_n_steps": ("Preview every so many steps", "每隔多少步预览"),
    "script": ("Script", "脚本"),
    "edit_styles": ("Edit styles", "编辑预设样式"),
    "style_name": ("Style", "样式名称"),
    "style_prompt": (
        "Added to the prompt, or with {prompt} put around it",
        "添加到提示词，或以 {prompt} 包裹提示词",
    ),
    "style_negative": ("The same for the negative prompt", "反向提示词同上"),
    "style_from_prompts": ("Take the prompts", "使用当前提示词"),
    "save": ("Save", "保存"),
    "delete": ("Delete", "删除"),
}

#: What scripts call their arguments, in Chinese.
LABELS: dict[str, str] = {
    "Append interrogated prompt at each iteration": "每次迭代后追加反推提示词",
    "Color variation": "色彩变化",
    "Decode CFG scale": "解码提示词引导系数 (CFG)",
    "Decode steps": "解码步数",
    "Denoising strength curve": "重绘幅度曲线",
    "Difference contrast": "差异对比度",
    "Difference threshold": "差异阈值",
    "Draw legend": "包含图例标注",
    "Fall-off exponent (lower=higher detail)": "衰减指数 (越低细节越多)",
    "Final denoising strength": "最终重绘幅度",
    "Grid margins (px)": "网格图边距 (像素)",
    "Include Sub Grids": "包含次级网格图",
    "Include Sub Images": "包含次级图像",
    "Insert prompts at the": "提示词插入位置",
    "Iterate seed every line": "每行输入都换一个种子",
    "Keep -1 for seeds": "保持种子为 -1",
    "List of prompt inputs": "提示词输入列表",
    "Loops": "迭代次数",
    "Mask blur": "蒙版边缘模糊度",
    "Mask influence": "蒙版影响",
    "Masked content": "蒙版区域内容处理",
    "Original negative prompt": "初始反向提示词",
    "Original prompt": "初始提示词",
    "Outpainting direction": "外绘方向",
    "Override `Denoising strength` to 1?": "将重绘幅度设为 1？",
    "Override `Sampling Steps` to the same value as `Decode steps`?": "将迭代步数设为与解码步数相同？",
    "Override `Sampling method` to Euler?(this method is built for it)": (
        "将采样方法设为 Euler？(此功能为其设计)"
    ),
    "Override `prompt` to the same value as `original prompt`?(and `negative prompt`)": (
        "将提示词设为与初始提示词相同？(反向提示词也是)"
    ),
    "Pixels to expand": "拓展的像素数",
    "Preservation strength": "保留强度",
    "Put variable parts at start of prompt": "把可变部分放在提示词开头",
    "Randomness": "随机度",
    "Scale Factor": "放大倍数",
    "Schedule bias": "调度偏差",
    "Select joining char": "选择分隔符",
    "Select prompt": "选择提示词",
    "Sigma adjustment for finding noise for image": "为查找图像噪声而调整 Sigma",
    "Soft inpainting": "柔和重绘",
    "Tile overlap": "分块重叠像素",
    "Transition contrast boost": "过渡对比度增强",
    "Upscaler": "放大算法",
    "Use different seed for each picture": "每张图片使用不同种子",
    "Use same random seed for all lines": "每行输入都使用同一随机种子",
    "Use text inputs instead of dropdowns": "使用文本输入框代替下拉列表",
    "Vary seeds for X": "X 轴使用不同种子",
    "Vary seeds for Y": "Y 轴使用不同种子",
    "Vary seeds for Z": "Z 轴使用不同种子",
    "X type": "X 轴类型",
    "X values": "X 轴值",
    "Y type": "Y 轴类型",
    "Y values": "Y 轴值",
    "Z type": "Z 轴类型",
    "Z values": "Z 轴值",
}


def dictionary(more: Mapping[str, tuple[str, str]]) -> gr.I18n:
    """All words for gradio, with ``more`` of the same form."""
    labels = {_key(english): (english, chinese) for english, chinese in LABELS.items()}
    words = {**WORDS, **labels, **more}
    english = {key: pair[0] for key, pair in words.items()}
    chinese = {key: pair[1] for key, pair in words.items()}
    # A browser may ask for the language alone.
    return gr.I18n(**{"en": english, "zh-CN": chinese, "zh": chinese})


def said(key: str, request: gr.Request) -> str:
    """A word as text, where gradio puts none in (its messages): by the language the browser asks for."""
    asked = request.headers.get("accept-language", "") if request.headers else ""
    return WORDS[key][asked.lower().startswith("zh")]


def label_of(english: str) -> str:
    """The label of a script's argument, in the browser's language where it is known."""
    return word(_key(english)) if english in LABELS else english


def _key(english: str) -> str:
    return "label_" + re.sub(r"\W+", "_", english)


def word(key: str) -> str:
    """A label that the browser shows in its language.

    Gradio's own type for it behaves as a str wherever a component takes a text.
    """
    label: str = I18nData(key)
    return label

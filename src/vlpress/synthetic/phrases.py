"""Phrasings of the built-in questions: at least ten English ones per skill, and Chinese ones.

Scenes fill the slots in braces. Words of answers and slots have one Chinese form in `CHINESE`;
strings in an image (text, numbers) are the same in both languages.
"""

from __future__ import annotations

CHINESE: dict[str, str] = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色",
    "orange": "橙色", "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色",
    "circle": "圆形", "square": "方形", "triangle": "三角形", "star": "星形", "diamond": "菱形",
    "cross": "十字", "ring": "圆环", "moon": "月牙",
    "left": "左边", "right": "右边", "above": "上面", "below": "下面",
    "left of": "左边", "right of": "右边",
    "top left": "左上", "top right": "右上", "bottom left": "左下", "bottom right": "右下",
    "center": "中间", "first": "第一", "second": "第二", "third": "第三", "last": "最后",
    "yes": "是", "no": "否", "light": "浅色", "dark": "深色", "sharp": "清晰", "blurred": "模糊",
    "shapes": "图形", "words": "文字", "chart": "图表", "form": "表格", "formula": "公式",
    "small": "小", "large": "大",
}  # fmt: skip

ENGLISH_PHRASES: dict[str, tuple[str, ...]] = {
    "read": (
        "what is written in the image?", "What text is shown?", "Read the text in the image.",
        "What does the image say?", "Which word is shown here?", "Please read the text.",
        "What is the text in this picture?", "What can be read here?", "Transcribe the text.",
        "Write down the text that is shown.",
    ),
    "number": (
        "what is the number in the image?", "Which number is shown?", "Read the number.",
        "What number can be seen here?", "What is the number?", "Write down the number.",
        "Please read the number in the image.", "Which digits are shown?", "Transcribe the digits.",
        "What digits are written here?",
    ),
    "formula": (
        "Please write out the expression of the formula in the image using LaTeX format.",
        "Write the formula in LaTeX.", "What formula is shown?", "Read the formula.",
        "Transcribe the formula.", "Which expression is written here?", "Give the LaTeX code.",
        "What is the formula in the image?", "Please read the expression.",
        "Write down the expression.",
    ),
    "ink": (
        "What is written in {colour}?", "Which text is {colour}?", "Read the {colour} text.",
        "What does the {colour} text say?", "Which word is written in {colour}?",
        "What is the {colour} word?", "Find the {colour} text and read it.",
        "Please read what is written in {colour}.", "What {colour} text is shown?",
        "Transcribe the {colour} text.",
    ),
    "sign": (
        "What does the {colour} sign say?", "Read the {colour} sign.",
        "What is written on the {colour} sign?", "Which text is on the {colour} sign?",
        "What can be read on the {colour} sign?", "What is the text on the {colour} sign?",
        "Please read the sign that is {colour}.", "What is on the {colour} sign?",
        "Which word is on the {colour} sign?", "Transcribe the {colour} sign.",
    ),
    "line": (
        "What is written in the {ordinal} line?", "Read the {ordinal} line.",
        "What is the {ordinal} line?", "What does the {ordinal} line say?",
        "Which text is in the {ordinal} line?", "Transcribe the {ordinal} line.",
        "Please read the {ordinal} line.", "What can be read in the {ordinal} line?",
        "Which word is in the {ordinal} line?", "What is on the {ordinal} line?",
    ),
    "value": (
        "What is the value of {key}?", "What is {key}?", "Which value does {key} have?",
        "Find the value of {key}.", "What is written after {key}?", "Read the value of {key}.",
        "What does {key} equal?", "Give the value for {key}.", "Which value belongs to {key}?",
        "What is the entry for {key}?",
    ),
    "count": (
        "How many shapes are there?", "How many shapes can you see?", "Count the shapes.",
        "What is the number of shapes?", "How many shapes does the image show?",
        "How many objects are there?", "Count the objects.", "How many objects can be seen?",
        "What is the total number of shapes?", "How many things are drawn here?",
    ),
    "count_shape": (
        "How many times does a {shape} appear?", "How often is a {shape} shown?",
        "Count every {shape}.", "How many objects are a {shape}?",
        "How many of the shapes are a {shape}?", "How many times can you see a {shape}?",
        "What is the count of the shape {shape}?", "How often does the {shape} appear?",
        "How many objects have the shape {shape}?", "How many times is a {shape} drawn?",
    ),
    "count_colour": (
        "How many shapes are {colour}?", "How many {colour} shapes are there?",
        "Count the {colour} shapes.", "How many objects are {colour}?",
        "How many {colour} objects can you see?", "What is the number of {colour} shapes?",
        "How many of the shapes are {colour}?", "How many {colour} things are drawn?",
        "Count the {colour} objects.", "How many objects have the colour {colour}?",
    ),
    "colour_of": (
        "What colour is the {shape}?", "Which colour does the {shape} have?",
        "What is the colour of the {shape}?", "The {shape} has which colour?",
        "Name the colour of the {shape}.", "Which colour is the {shape}?",
        "In what colour is the {shape} drawn?", "Tell me the colour of the {shape}.",
        "The {shape} is drawn in which colour?", "What colour does the {shape} have?",
    ),
    "shape_of": (
        "What shape is {colour}?", "Which shape is {colour}?", "Name the {colour} shape.",
        "What is the {colour} object?", "Which object is {colour}?",
        "What shape does the {colour} object have?", "The {colour} object is what shape?",
        "Which shape is drawn in {colour}?", "What is drawn in {colour}?",
        "Tell me which shape is {colour}.",
    ),
    "where": (
        "Where is the {shape}?", "Where in the image is the {shape}?",
        "In which part of the image is the {shape}?", "Where can the {shape} be found?",
        "What is the position of the {shape}?", "Where do you see the {shape}?",
        "Which part of the image shows the {shape}?", "Find the {shape}. Where is it?",
        "Where is the {shape} placed?", "The {shape} is in which part of the image?",
    ),
    "direction": (
        "Where is the {a} relative to the {b}?", "On which side of the {b} is the {a}?",
        "Seen from the {b}, where is the {a}?", "Where is the {a} compared with the {b}?",
        "The {a} is on which side of the {b}?", "What side of the {b} is the {a} on?",
        "Where does the {a} lie relative to the {b}?", "From the {b}, where is the {a}?",
        "Relative to the {b}, where is the {a}?", "Which side of the {b} has the {a}?",
    ),
    "beside": (
        "Which shape is {direction} the {b}?", "What is {direction} the {b}?",
        "What lies {direction} the {b}?", "Name the shape {direction} the {b}.",
        "What can be seen {direction} the {b}?", "Which object is {direction} the {b}?",
        "What shape is drawn {direction} the {b}?", "Which shape lies {direction} the {b}?",
        "Find the shape {direction} the {b}.", "The shape {direction} the {b} is what?",
    ),
    "largest": (
        "Which shape is the largest?", "What is the largest shape?", "Which object is the largest?",
        "Name the largest shape.", "What shape is the biggest?", "Which shape is the biggest?",
        "What is the biggest object?", "Find the largest shape.", "Which one is the largest?",
        "The largest object is what shape?",
    ),
    "smallest": (
        "Which shape is the smallest?", "What is the smallest shape?",
        "Which object is the smallest?", "Name the smallest shape.", "What shape is the tiniest?",
        "Which shape is the tiniest?", "What is the smallest object?", "Find the smallest shape.",
        "Which one is the smallest?", "The smallest object is what shape?",
    ),
    "same_colour": (
        "Do the {a} and the {b} have the same colour?", "Are the {a} and the {b} the same colour?",
        "Is the {a} the same colour as the {b}?", "Does the {a} have the colour of the {b}?",
        "Is the colour of the {a} equal to the colour of the {b}?",
        "Have the {a} and the {b} one colour?", "Do the {a} and the {b} share a colour?",
        "Is the {a} drawn in the colour of the {b}?", "Do the {a} and {b} match in colour?",
        "Are both the {a} and the {b} of one colour?",
    ),
    "odd_colour": (
        "Which colour is the odd one out?", "What colour is the odd one out?",
        "One shape has another colour. Which one?", "Which colour appears only once?",
        "What is the colour of the shape that differs?", "Which colour does not fit?",
        "Which colour is different?", "What colour does the odd shape have?",
        "Find the colour that differs.", "Name the colour that appears only once.",
    ),
    "odd_shape": (
        "Which shape is the odd one out?", "What shape is the odd one out?",
        "One object has another shape. Which one?", "Which shape appears only once?",
        "What is the shape of the object that differs?", "Which shape does not fit?",
        "Which shape is different?", "What shape does the odd object have?",
        "Find the shape that differs.", "Name the shape that appears only once.",
    ),
    "most_colour": (
        "Which colour is the most common?", "What is the most common colour?",
        "Which colour appears most often?", "What colour do most shapes have?",
        "Most shapes have which colour?", "Which colour is seen most often?",
        "Name the most common colour.", "Which colour is used the most?",
        "What colour is used most often?", "Find the most common colour.",
    ),
    "next_colour": (
        "Which colour comes next in the row?", "What colour should come next?",
        "The row goes on. Which colour is next?", "Which colour follows?",
        "What is the next colour in the row?", "Continue the row: which colour?",
        "What colour would the next shape have?", "Which colour will the next shape have?",
        "Name the next colour of the row.", "Which colour continues the row?",
    ),
    "inside": (
        "Which shape is inside the frame?", "What is inside the frame?",
        "What does the frame contain?", "Which shape does the frame surround?",
        "Name the shape in the frame.", "What shape lies in the frame?",
        "Which object is in the frame?", "What can be seen inside the frame?",
        "Which shape is drawn in the frame?", "The frame goes around which shape?",
    ),
    "tallest": (
        "Which bar is the tallest?", "What colour is the tallest bar?", "Name the tallest bar.",
        "Which bar is the highest?", "What is the colour of the highest bar?",
        "Which colour has the tallest bar?", "Find the tallest bar.",
        "Which colour has the largest value?", "Which bar has the largest value?",
        "The tallest bar has which colour?",
    ),
    "shortest": (
        "Which bar is the shortest?", "What colour is the shortest bar?", "Name the shortest bar.",
        "Which bar is the lowest?", "What is the colour of the lowest bar?",
        "Which colour has the shortest bar?", "Find the shortest bar.",
        "Which colour has the smallest value?", "Which bar has the smallest value?",
        "The shortest bar has which colour?",
    ),
    "bar_value": (
        "What is the value of the {colour} bar?", "Which value does the {colour} bar have?",
        "Read the value of the {colour} bar.", "What number is on the {colour} bar?",
        "What value does {colour} have?", "Give the value of the {colour} bar.",
        "How much is the {colour} bar?", "Which number belongs to the {colour} bar?",
        "What does the {colour} bar show?", "Find the value of the {colour} bar.",
    ),
    "bar_count": (
        "How many bars are there?", "Count the bars.", "How many bars does the chart have?",
        "What is the number of bars?", "How many bars can you see?", "How many bars are shown?",
        "How many bars are drawn?", "The chart has how many bars?",
        "What is the total number of bars?", "How many columns does the chart have?",
    ),
    "kind": (
        "What does the image show?", "What kind of image is this?", "What is shown in the image?",
        "Which kind of picture is this?", "What can be seen in the image?",
        "How would you describe the image?", "What is this an image of?",
        "What is the image about?", "Which description fits the image?",
        "What sort of image is this?",
    ),
    "background": (
        "Is the background light or dark?", "What is the background like?",
        "How is the background of the image?", "Which background does the image have?",
        "What kind of background is it?", "Is it a light or a dark background?",
        "Is the background dark or light?", "Which style is the background?",
        "How bright is the background?", "Describe the background.",
    ),
    "quality": (
        "Is the image sharp or blurred?", "How is the quality of the image?",
        "Is the image blurred or sharp?", "Which quality does the image have?",
        "What is the quality of the picture?", "How sharp is the image?",
        "Is the picture in focus?", "Describe the quality of the image.",
        "Does the image look sharp or blurred?", "What quality is the image?",
    ),
    "which_image": (
        "Which image shows a {shape}?", "In which image is the {shape}?",
        "Which picture has a {shape}?", "Where is the {shape}: in which image?",
        "Which of the images shows the {shape}?", "In which picture do you see a {shape}?",
        "Find the image with the {shape}.", "The {shape} is in which image?",
        "Which image contains a {shape}?", "Which picture contains the {shape}?",
    ),
    "which_colour_image": (
        "Which image shows something {colour}?", "In which image is a {colour} shape?",
        "Which picture has a {colour} shape?", "Where is the {colour} shape: in which image?",
        "Which of the images shows a {colour} shape?", "In which picture do you see {colour}?",
        "Find the image with the {colour} shape.", "The {colour} shape is in which image?",
        "Which image contains a {colour} shape?", "Which picture contains something {colour}?",
    ),
    "nth_colour": (
        "What colour is the shape in the {ordinal} image?",
        "Which colour is shown in the {ordinal} image?",
        "What is the colour in the {ordinal} image?", "Name the colour in the {ordinal} picture.",
        "Which colour does the {ordinal} image show?", "The {ordinal} image has which colour?",
        "In the {ordinal} image, what colour is the shape?",
        "Look at the {ordinal} image. Which colour is it?",
        "What colour can be seen in the {ordinal} picture?",
        "Which colour has the shape in the {ordinal} picture?",
    ),
    "nth_shape": (
        "What shape is in the {ordinal} image?", "Which shape is shown in the {ordinal} image?",
        "What is in the {ordinal} image?", "Name the shape in the {ordinal} picture.",
        "Which shape does the {ordinal} image show?", "The {ordinal} image has which shape?",
        "In the {ordinal} image, what shape is there?",
        "Look at the {ordinal} image. Which shape is it?",
        "What shape can be seen in the {ordinal} picture?",
        "Which shape has the {ordinal} picture?",
    ),
    "nth_read": (
        "What is written in the {ordinal} image?", "Read the text in the {ordinal} image.",
        "What does the {ordinal} image say?", "Which text is in the {ordinal} image?",
        "What is the text in the {ordinal} picture?", "Transcribe the {ordinal} image.",
        "Please read the {ordinal} image.", "Look at the {ordinal} image. What does it say?",
        "What can be read in the {ordinal} picture?", "Which word is in the {ordinal} picture?",
    ),
    "list": (
        "List what the image shows.", "List everything in the image.", "Name all that is shown.",
        "Describe the image from top to bottom.", "What does the image contain?",
        "List the contents of the image.", "Write down all that you see.",
        "Go through the image line by line.", "Name everything in reading order.",
        "Describe all parts of the image.",
    ),
    "repeat": (
        "Which option says {word}?", "Which option is {word}?", "Choose {word}.",
        "Select the option {word}.", "The answer is {word}. Which option is it?",
        "Find {word} in the options.", "Which of the options is {word}?", "Pick {word}.",
        "Where is {word} in the options?", "Select {word}.",
    ),
}  # fmt: skip

CHINESE_PHRASES: dict[str, tuple[str, ...]] = {
    "read": ("图中写的是什么？", "请读出图中的文字。"),
    "number": ("图中的数字是什么？", "请读出图中的数字。"),
    "formula": ("请写出图中的公式。", "图中的公式是什么？"),
    "ink": ("{colour}的文字是什么？", "请读出{colour}的文字。"),
    "sign": ("{colour}的牌子上写的是什么？", "请读出{colour}的牌子。"),
    "line": ("{ordinal}行写的是什么？", "请读出{ordinal}行。"),
    "value": ("{key}的值是什么？", "请读出{key}的值。"),
    "count": ("图中有多少个图形？", "请数一数图形。"),
    "count_shape": ("图中有多少个{shape}？", "{shape}出现几次？"),
    "count_colour": ("图中有多少个{colour}的图形？", "{colour}的图形有几个？"),
    "colour_of": ("{shape}是什么颜色？", "{shape}的颜色是什么？"),
    "shape_of": ("{colour}的是什么图形？", "什么图形是{colour}的？"),
    "where": ("{shape}在哪里？", "{shape}在图中的什么位置？"),
    "direction": ("{a}在{b}的哪一边？", "相对于{b}，{a}在哪里？"),
    "beside": ("{b}的{direction}是什么图形？", "什么图形在{b}的{direction}？"),
    "largest": ("最大的是什么图形？", "哪个图形最大？"),
    "smallest": ("最小的是什么图形？", "哪个图形最小？"),
    "same_colour": ("{a}和{b}的颜色相同吗？", "{a}和{b}是同一种颜色吗？"),
    "odd_colour": ("哪种颜色与众不同？", "哪种颜色只出现一次？"),
    "odd_shape": ("哪个图形与众不同？", "哪个图形只出现一次？"),
    "most_colour": ("哪种颜色最多？", "最常见的颜色是什么？"),
    "next_colour": ("下一个是什么颜色？", "接下来是什么颜色？"),
    "inside": ("框里是什么图形？", "什么图形在框里？"),
    "tallest": ("最高的柱子是什么颜色？", "哪根柱子最高？"),
    "shortest": ("最矮的柱子是什么颜色？", "哪根柱子最矮？"),
    "bar_value": ("{colour}柱子的值是什么？", "请读出{colour}柱子的值。"),
    "bar_count": ("图中有多少根柱子？", "有几根柱子？"),
    "kind": ("图中是什么？", "这是什么图？"),
    "background": ("背景是浅色还是深色？", "背景是什么样的？"),
    "quality": ("图片清晰还是模糊？", "图片的质量怎么样？"),
    "which_image": ("哪张图中有{shape}？", "{shape}在哪张图中？"),
    "which_colour_image": ("哪张图中有{colour}的图形？", "{colour}的图形在哪张图中？"),
    "nth_colour": ("{ordinal}张图中的图形是什么颜色？", "{ordinal}张图是什么颜色？"),
    "nth_shape": ("{ordinal}张图中是什么图形？", "{ordinal}张图是什么图形？"),
    "nth_read": ("{ordinal}张图中写的是什么？", "请读出{ordinal}张图中的文字。"),
    "list": ("请列出图中的内容。", "图中有些什么？"),
    "repeat": ("哪个选项是{word}？", "请选择{word}。"),
}


def translate(word: str, language: str) -> str:
    """Translate a slot or answer to `language`, `en` or `zh`; strings in images do not change."""
    return CHINESE.get(word, word) if language == "zh" else word


def translate_list(text: str, language: str) -> str:
    """Translate a list such as `red circle, blue star` to `language`, word by word."""
    if language == "en":
        return text
    parts = (part.split(" ") for part in text.split(", "))
    return "，".join("".join(translate(word, language) for word in part) for part in parts)


def phrasings(skill: str, language: str) -> tuple[str, ...]:
    """Return all phrasings of a skill in `language`, `en` or `zh`."""
    return (CHINESE_PHRASES if language == "zh" else ENGLISH_PHRASES)[skill]

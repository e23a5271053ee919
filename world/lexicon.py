"""The words of the world: plain lists, no logic.

The lists are kept small on purpose. A model of five million parameters learns every word well, so
fine-tuning starts from good embeddings.
"""

FIRST_NAMES = (
    "Ada", "Alma", "Anton", "Bela", "Boris", "Clara", "Corin", "Dalia", "Daven", "Edda",
    "Elias", "Emil", "Fabia", "Felix", "Greta", "Gustav", "Hanna", "Hugo", "Ida", "Ivo",
    "Jana", "Jonas", "Karl", "Katya", "Lena", "Leo", "Lotta", "Magda", "Marek", "Mira",
    "Nadia", "Nils", "Nora", "Olga", "Oskar", "Paula", "Pavel", "Petra", "Quinn", "Rasmus",
    "Rosa", "Sami", "Selma", "Stefan", "Tara", "Theo", "Tilda", "Ulrik", "Una", "Vera",
    "Viktor", "Wanda", "Wim", "Xenia", "Yara", "Yuri", "Zara", "Zeno", "Zoe", "Milo",
)  # fmt: skip
SURNAMES = (
    "Ashdown", "Barlow", "Birch", "Carver", "Cole", "Dunmore", "Elder", "Fenwick", "Frost",
    "Garner", "Hale", "Hartley", "Ivers", "Jarrow", "Keller", "Lark", "Lowell", "Marsh",
    "Norwood", "Oakes", "Penrose", "Quill", "Reed", "Rowan", "Sorrel", "Stone", "Thorne",
    "Underhill", "Vance", "Wells", "Yarrow", "Zeller",
)  # fmt: skip
TOWNS = (
    "Amberly", "Brackwater", "Coldbrook", "Dunhaven", "Eastmere", "Fallowfield", "Glimmerton",
    "Hollowell", "Inkford", "Juniper Hill", "Kestrel Bay", "Lindow", "Mossgate", "Northwick",
    "Oldbridge", "Pinecross", "Quarrytown", "Redcliff", "Saltmarsh", "Thistledown", "Umberley",
    "Vinehurst", "Westering", "Yellowfen",
)  # fmt: skip
RIVERS = ("Aller", "Brill", "Cray", "Dove", "Esk", "Firth", "Gale", "Humble")
JOBS = (
    "baker", "carpenter", "doctor", "farmer", "fisher", "gardener", "judge", "librarian",
    "mason", "miller", "nurse", "painter", "pilot", "potter", "printer", "sailor", "singer",
    "tailor", "teacher", "weaver",
)  # fmt: skip
ANIMALS = (
    "cat", "dog", "goat", "hen", "horse", "duck", "rabbit", "parrot", "pony", "mouse", "turtle",
    "goose",
)  # fmt: skip
PET_NAMES = (
    "Biscuit", "Button", "Clover", "Dot", "Ember", "Fig", "Ginger", "Hazel", "Inky", "Jasper",
    "Kit", "Lemon", "Mop", "Nettle", "Olive", "Pepper", "Rusty", "Snow", "Tinker", "Velvet",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "grey", "purple", "orange",
    "pink", "silver",
)  # fmt: skip
FOODS = (
    "bread", "cheese", "soup", "apples", "pears", "rice", "honey", "fish", "eggs", "beans",
    "carrots", "plums", "cake", "noodles", "salad", "potatoes",
)  # fmt: skip
HOBBIES = (
    "chess", "rowing", "painting", "singing", "running", "knitting", "cooking", "reading",
    "dancing", "fishing", "cycling", "drawing",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
MATERIALS = ("wood", "iron", "glass", "clay", "wool", "paper", "copper", "leather", "steel")

# thing -> group; the groups are what "Which kind of thing is ...?" asks for.
THINGS = {
    "kettle": "kitchen", "toaster": "kitchen", "blender": "kitchen", "oven": "kitchen",
    "fridge": "kitchen", "teapot": "kitchen", "mixer": "kitchen", "stove": "kitchen",
    "pan": "kitchen", "spoon": "kitchen", "bowl": "kitchen", "cup": "kitchen",
    "hose": "garden", "pump": "garden", "mower": "garden", "bucket": "garden",
    "rake": "garden", "spade": "garden", "barrow": "garden", "ladder": "garden",
    "lamp": "house", "heater": "house", "fan": "house", "clock": "house", "boiler": "house",
    "mirror": "house", "chair": "house", "table": "house", "rug": "house", "shelf": "house",
    "radio": "music", "speaker": "music", "drum": "music", "flute": "music", "piano": "music",
    "hammer": "tool", "saw": "tool", "drill": "tool", "wrench": "tool", "brush": "tool",
    "coat": "clothing", "scarf": "clothing", "hat": "clothing", "glove": "clothing",
    "boot": "clothing", "shirt": "clothing", "phone": "office", "printer": "office",
    "pen": "office", "stamp": "office", "notebook": "office", "camera": "office",
    "ball": "toy", "kite": "toy", "puzzle": "toy", "doll": "toy", "whistle": "toy",
}  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("loud", "quiet"), ("bright", "dim"),
    ("clean", "dirty"), ("strong", "weak"), ("cheap", "dear"), ("early", "late"),
    ("wet", "dry"), ("heavy", "light"), ("soft", "hard"), ("new", "old"), ("good", "bad"),
    ("full", "empty"), ("open", "shut"), ("happy", "sad"), ("easy", "hard"), ("near", "far"),
    ("whole", "broken"), ("right", "wrong"), ("safe", "dangerous"), ("useful", "useless"),
    ("smooth", "rough"), ("sturdy", "flimsy"), ("lovely", "awful"), ("tidy", "messy"),
    ("sharp", "blunt"), ("high", "low"), ("normal", "strange"), ("calm", "angry"),
    ("tall", "short"), ("rich", "poor"), ("sweet", "bitter"), ("pretty", "ugly"),
)  # fmt: skip
# word -> plainer word, for "another word for ..."
SYNONYMS = (
    ("drip", "leak"), ("trickle", "leak"), ("rattle", "noise"), ("buzz", "noise"),
    ("hum", "noise"), ("split", "crack"), ("chip", "crack"), ("parcel", "package"),
    ("urgent", "pressing"), ("ordinary", "normal"), ("delayed", "late"), ("lifeless", "dead"),
    ("mistaken", "wrong"), ("tiny", "small"), ("huge", "big"), ("quick", "fast"),
    ("silent", "quiet"), ("glad", "happy"), ("unhappy", "sad"), ("trouble", "problem"),
    ("item", "thing"), ("goods", "products"), ("rank", "priority"), ("refund", "money back"),
    ("begin", "start"), ("finish", "end"), ("repair", "mend"), ("purchase", "buy"),
    ("reply", "answer"), ("remark", "comment"), ("puddle", "pool"), ("crooked", "bent"),
)  # fmt: skip

# Everyday words that documents quote, count and spell.
PLAIN_WORDS = (
    "product", "problem", "priority", "order", "record", "number", "code", "label", "price",
    "leak", "noise", "crack", "dead", "late", "wrong", "high", "low", "normal", "water", "floor",
    "button", "handle", "parcel", "box", "morning", "side", "corner", "answer", "need", "wait",
    "hurry", "time", "help", "work", "money", "sound", "ears", "night", "front", "back", "middle",
    "week", "month", "year", "today", "moment", "size", "delivery", "post", "mistake", "sister",
    "thank", "please", "positive", "negative", "waste", "made", "use", "look", "worth", "text",
    "review", "sentence", "letter", "word", "start", "stop", "turn", "press", "fine",
)  # fmt: skip

"""A dozen sentences unlike each other, as people write them."""

PROSE = [
    "The ferry to the island was cancelled because of the storm, so we stayed another night in the small hotel.",
    "Researchers have found a protein that helps plants to survive long periods without any rain.",
    "How can I change the delivery address of an order that has already been shipped?",
    "The jury found the former treasurer guilty of fraud and sentenced him to four years in prison.",
    "A hash table offers constant time lookups on average, but its worst case is linear.",
    "Add the chopped onions and fry them gently until they are soft, then pour in the stock.",
    "The striker limped off after twenty minutes, and the home side never recovered.",
    "Interest rates are expected to remain unchanged until the spring, according to most economists.",
    "He plays the cello badly but with conviction; his neighbours have learnt to go out on Thursdays.",
    "Error 404: the page that you are looking for has been moved, renamed or never existed.",
    "Glaciers in the Alps lost a tenth of their volume within only two years.",
    "Please find attached the minutes of last week's meeting and a draft of the contract.",
]

"""The suite side by side with CleverHans, Foolbox, ART, torchattacks and `model.fit`."""

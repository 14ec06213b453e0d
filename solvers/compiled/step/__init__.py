"""One step: recorded, lowered, differentiated and planned."""

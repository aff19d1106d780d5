"""Fine-tuning on footage: recipes, memory, evaluation and export."""

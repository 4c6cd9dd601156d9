"""Post-train vision encoders with GRPO-RM: group-relative policy optimization over an enumerated output set."""

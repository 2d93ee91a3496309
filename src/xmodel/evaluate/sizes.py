"""How many questions the benchmarks have, so that a figure of fewer is told from a figure of the whole.

Of each the split that lm-evaluation-harness scores. Sources: the data sets' own cards and files; a test holds them
against the published figures (shares of so many questions) and the groups' published totals.
"""

from __future__ import annotations

# By the folder of a benchmark's rows; of a group by subset, of GLUE by task.
SIZES: dict[str, dict[str, int]] = {
    "arc_challenge": {"": 1172},
    "arc_easy": {"": 2376},
    "boolq": {"": 3270},
    "hellaswag": {"": 10042},
    "openbookqa": {"": 500},
    "piqa": {"": 1838},
    "sciq": {"": 1000},
    "triviaqa": {"": 17944},
    "winogrande": {"": 1267},
    "gsm8k": {"": 1319},
    "arc_zh": {"": 1170},
    "xcopa_zh": {"": 500},
    "xnli_zh": {"": 2490},
    "lambada_openai": {"": 5153},
    "humaneval": {"": 164},
    "bbh": {
        "boolean_expressions": 250, "causal_judgement": 187, "date_understanding": 250, "disambiguation_qa": 250,
        "dyck_languages": 250, "formal_fallacies": 250, "geometric_shapes": 250, "hyperbaton": 250,
        "logical_deduction_five_objects": 250, "logical_deduction_seven_objects": 250,
        "logical_deduction_three_objects": 250, "movie_recommendation": 250, "multistep_arithmetic_two": 250,
        "navigate": 250, "object_counting": 250, "penguins_in_a_table": 146, "reasoning_about_colored_objects": 250,
        "ruin_names": 250, "salient_translation_error_detection": 250, "snarks": 178, "sports_understanding": 250,
        "temporal_sequences": 250, "tracking_shuffled_objects_five_objects": 250,
        "tracking_shuffled_objects_seven_objects": 250, "tracking_shuffled_objects_three_objects": 250,
        "web_of_lies": 250, "word_sorting": 250,
    },
    "glue": {
        "cola": 1043, "mnli": 9815, "mnli_mismatch": 9832, "mrpc": 408, "qnli": 5463, "qqp": 40430, "rte": 277,
        "sst2": 872, "wnli": 71,
    },
    "mmlu": {
        "abstract_algebra": 100, "anatomy": 135, "astronomy": 152, "business_ethics": 100, "clinical_knowledge": 265,
        "college_biology": 144, "college_chemistry": 100, "college_computer_science": 100, "college_mathematics": 100,
        "college_medicine": 173, "college_physics": 102, "computer_security": 100, "conceptual_physics": 235,
        "econometrics": 114, "electrical_engineering": 145, "elementary_mathematics": 378, "formal_logic": 126,
        "global_facts": 100, "high_school_biology": 310, "high_school_chemistry": 203,
        "high_school_computer_science": 100, "high_school_european_history": 165, "high_school_geography": 198,
        "high_school_government_and_politics": 193, "high_school_macroeconomics": 390, "high_school_mathematics": 270,
        "high_school_microeconomics": 238, "high_school_physics": 151, "high_school_psychology": 545,
        "high_school_statistics": 216, "high_school_us_history": 204, "high_school_world_history": 237,
        "human_aging": 223, "human_sexuality": 131, "international_law": 121, "jurisprudence": 108,
        "logical_fallacies": 163, "machine_learning": 112, "management": 103, "marketing": 234,
        "medical_genetics": 100, "miscellaneous": 783, "moral_disputes": 346, "moral_scenarios": 895, "nutrition": 306,
        "philosophy": 311, "prehistory": 324, "professional_accounting": 282, "professional_law": 1534,
        "professional_medicine": 272, "professional_psychology": 612, "public_relations": 110, "security_studies": 245,
        "sociology": 201, "us_foreign_policy": 100, "virology": 166, "world_religions": 171,
    },
    "ceval": {
        "accountant": 49, "advanced_mathematics": 19, "art_studies": 33, "basic_medicine": 19,
        "business_administration": 33, "chinese_language_and_literature": 23, "civil_servant": 47,
        "clinical_medicine": 22, "college_chemistry": 24, "college_economics": 55, "college_physics": 19,
        "college_programming": 37, "computer_architecture": 21, "computer_network": 19, "discrete_mathematics": 16,
        "education_science": 29, "electrical_engineer": 37, "environmental_impact_assessment_engineer": 31,
        "fire_engineer": 31, "high_school_biology": 19, "high_school_chemistry": 19, "high_school_chinese": 19,
        "high_school_geography": 19, "high_school_history": 20, "high_school_mathematics": 18,
        "high_school_physics": 19, "high_school_politics": 19, "ideological_and_moral_cultivation": 19, "law": 24,
        "legal_professional": 23, "logic": 22, "mao_zedong_thought": 24, "marxism": 19, "metrology_engineer": 24,
        "middle_school_biology": 21, "middle_school_chemistry": 20, "middle_school_geography": 12,
        "middle_school_history": 22, "middle_school_mathematics": 19, "middle_school_physics": 19,
        "middle_school_politics": 21, "modern_chinese_history": 23, "operating_system": 19, "physician": 49,
        "plant_protection": 22, "probability_and_statistics": 18, "professional_tour_guide": 29, "sports_science": 19,
        "tax_accountant": 49, "teacher_qualification": 44, "urban_and_rural_planner": 46, "veterinary_medicine": 23,
    },
    "cmmlu": {
        "agronomy": 169, "anatomy": 148, "ancient_chinese": 164, "arts": 160, "astronomy": 165, "business_ethics": 209,
        "chinese_civil_service_exam": 160, "chinese_driving_rule": 131, "chinese_food_culture": 136,
        "chinese_foreign_policy": 107, "chinese_history": 323, "chinese_literature": 204,
        "chinese_teacher_qualification": 179, "clinical_knowledge": 237, "college_actuarial_science": 106,
        "college_education": 107, "college_engineering_hydrology": 106, "college_law": 108, "college_mathematics": 105,
        "college_medical_statistics": 106, "college_medicine": 273, "computer_science": 204, "computer_security": 171,
        "conceptual_physics": 147, "construction_project_management": 139, "economics": 159, "education": 163,
        "electrical_engineering": 172, "elementary_chinese": 252, "elementary_commonsense": 198,
        "elementary_information_and_technology": 238, "elementary_mathematics": 230, "ethnology": 135,
        "food_science": 143, "genetics": 176, "global_facts": 149, "high_school_biology": 169,
        "high_school_chemistry": 132, "high_school_geography": 118, "high_school_mathematics": 164,
        "high_school_physics": 110, "high_school_politics": 143, "human_sexuality": 126, "international_law": 185,
        "journalism": 172, "jurisprudence": 411, "legal_and_moral_basis": 214, "logical": 123, "machine_learning": 122,
        "management": 210, "marketing": 180, "marxist_theory": 189, "modern_chinese": 116, "nutrition": 145,
        "philosophy": 105, "professional_accounting": 175, "professional_law": 211, "professional_medicine": 376,
        "professional_psychology": 232, "public_relations": 174, "security_study": 135, "sociology": 226,
        "sports_science": 165, "traditional_chinese_medicine": 185, "virology": 169, "world_history": 161,
        "world_religions": 160,
    },
}  # fmt: skip


def size_of(folder: str, subset: str, task: str) -> int | None:
    """The questions of one task; None where that is not known."""
    sizes = SIZES.get(folder, {})
    return sizes.get(task, sizes.get(subset))

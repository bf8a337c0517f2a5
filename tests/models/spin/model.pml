/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all models share. One compiled model serves for all of its mutants: which one is at work is said when it starts
 * (MUTANT=n in the environment, see explore.py), and is no part of the state. SEEN(n) notes that a situation of the
 * model's list was reached; it stands in a d_step with whatever leads there.
 */
c_decl {
  static int model_mutant;
  static unsigned long model_seen[32];
  static void model_report(void) {
    int n;
    for (n = 1; n < 32; n++) {
      if (model_seen[n]) printf("seen %d %lu\n", n, model_seen[n]);
    }
  }
};

#define MUTANT(n) c_expr { model_mutant == n }
#define SEEN(n)   c_code { model_seen[n]++; }

/* First statement of init. */
inline model_begin() {
  c_code {
    const char *number = getenv("MUTANT");
    model_mutant = number ? atoi(number) : 0;
    atexit(model_report);
  }
}

#include "counts.h"

extern "C" __attribute__((visibility("default"))) void ncg_emulated_counts(ncg::tf::Counts* out) {
  *out = ncg::tf::counts;
}

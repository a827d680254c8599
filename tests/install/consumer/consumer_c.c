// Checks that the C interface compiles as C, and that the program finds the shared library when it starts.
#include "client/cpp/c_api.h"

int main(void) { return hookline_abi_version() == HOOKLINE_ABI_VERSION ? 0 : 1; }

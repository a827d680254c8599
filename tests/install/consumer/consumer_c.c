// The C interface compiles as C and its shared library is found when the program starts.
#include "client/cpp/c_api.h"

int main(void) { return hookline_abi_version() == HOOKLINE_ABI_VERSION ? 0 : 1; }

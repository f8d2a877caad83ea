// Names the changes that this library has.

#include "afterword.h"

extern "C" const char * llama_afterword_changes(void) {
    return AFTERWORD_CHANGES;
}

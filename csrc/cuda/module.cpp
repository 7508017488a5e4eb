// The Python module of the CUDA object: importing it loads the operators, which register themselves.
#include <Python.h>

PyMODINIT_FUNC PyInit__C_cuda(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", "Operators for CUDA tensors.", 0, nullptr};
  return PyModule_Create(&definition);
}

// Pictures from the camera: in a dialog where the page may use it, else by the phone's own camera.

import {find, element} from "./view.js";

let taken = 0;
let opened = 0; // times that the dialog was; it may be closed, and opened again, while the permission is asked for

// Calls onFile with every picture that is taken; `what` it is a picture of, for the title.
export function openCamera(what, onFile) {
  find("camera-title").textContent = `Camera: ${what}`;
  if (navigator.mediaDevices?.getUserMedia) return inDialog(onFile);
  const input = element("input", {type: "file", accept: "image/*"}); // not https and not this machine
  input.setAttribute("capture", "environment");
  input.addEventListener("change", () => [...input.files].forEach(onFile));
  input.click();
}

async function inDialog(onFile) {
  const dialog = find("camera"), video = dialog.querySelector("video"), line = find("camera-line");
  const mine = ++opened, isOpen = () => dialog.open && mine === opened;
  const off = (stream) => stream?.getTracks().forEach((track) => track.stop());
  line.textContent = "";
  find("camera-take").onclick = () => shot(video, (file) => {
    onFile(file);
    line.textContent = `${file.name} taken.`;
  });
  find("camera-close").onclick = () => dialog.close();
  dialog.onclose = () => {
    off(video.srcObject);
    video.srcObject = null;
  };
  dialog.showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}, audio: false});
    if (isOpen()) video.srcObject = stream;
    else off(stream);
  } catch (error) {
    if (isOpen()) line.textContent = `The camera cannot be used (${error.message}).`;
  }
}

function shot(video, onFile) {
  if (!video.videoWidth) return;
  const canvas = element("canvas", {width: video.videoWidth, height: video.videoHeight});
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => onFile(new File([blob], `camera ${++taken}.jpg`, {type: "image/jpeg"})), "image/jpeg", 0.93);
}
